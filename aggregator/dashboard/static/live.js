// Keeps a page up to date: asks for the same page every two seconds and puts in the parts marked data-live that differ.
"use strict";
(() => {
  const EVERY = 2000;
  const lost = document.getElementById("connection");
  const sources = new Map(); // id of a live part → its source as last received, whatever a person has opened since
  for (const node of document.querySelectorAll("[data-live]")) sources.set(node.id, node.outerHTML);
  let tag = null;
  let failures = 0;

  async function ask() {
    const headers = { accept: "text/html" };
    if (tag) headers["if-none-match"] = tag;
    const answer = await fetch(location.href, { headers, credentials: "same-origin", redirect: "follow" });
    if (answer.redirected && new URL(answer.url).pathname === "/login") {
      location.assign(answer.url);
      return;
    }
    if (answer.status === 304) return;
    if (!answer.ok) throw new Error(String(answer.status));
    put(new DOMParser().parseFromString(await answer.text(), "text/html"));
    tag = answer.headers.get("etag");
  }

  function put(fresh) {
    for (const old of document.querySelectorAll("[data-live]")) {
      const now = fresh.getElementById(old.id);
      if (!now || now.outerHTML === sources.get(old.id)) continue;
      sources.set(old.id, now.outerHTML);
      // What a person has opened or holds the focus on stays so.
      const open = [...old.querySelectorAll("details[open][id]")].map((node) => node.id);
      const focus = old.contains(document.activeElement) ? place(old, document.activeElement) : -1;
      const node = document.importNode(now, true);
      for (const id of open) node.querySelector("#" + CSS.escape(id))?.setAttribute("open", "");
      old.replaceWith(node);
      if (focus >= 0) node.querySelectorAll("a, button, summary")[focus]?.focus({ preventScroll: true });
      node.dispatchEvent(new CustomEvent("cairn:live", { bubbles: true }));
    }
  }

  const place = (root, node) => [...root.querySelectorAll("a, button, summary")].indexOf(node);

  async function turn() {
    if (!document.hidden) {
      try {
        await ask();
        failures = 0;
      } catch {
        failures += 1;
      }
      lost.hidden = failures < 2;
    }
    setTimeout(turn, EVERY * Math.min(8, 1 + failures));
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask().catch(() => {}); });
  setTimeout(turn, EVERY);
})();
