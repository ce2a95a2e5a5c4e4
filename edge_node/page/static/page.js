// Keeps the page current: fetches the live part every two seconds and puts it in place only when it has changed.
"use strict";
const live = document.getElementById("live");
const silent = document.getElementById("silent");
const large = document.getElementById("large");
const address = live.dataset.all ? "live?all" : "live";
let shown = null;

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.status);
    const text = await answer.text();
    if (text !== shown && !live.contains(document.getSelection().anchorNode?.parentElement?.closest("td, li"))) {
      const focused = document.activeElement?.dataset?.large;
      live.innerHTML = text;
      if (focused) live.querySelector(`[data-large="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
      shown = text;
    }
    silent.hidden = true;
  } catch {
    silent.hidden = false;
  }
}

live.addEventListener("click", (event) => {
  const button = event.target.closest("[data-large]");
  if (!button) return;
  large.querySelector("img").src = button.dataset.large;
  large.querySelector("img").alt = button.dataset.name;
  large.querySelector("p").textContent = button.dataset.name;
  large.showModal();
});
large.addEventListener("click", () => large.close());
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, 2000);
