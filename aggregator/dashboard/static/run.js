// The curves of a run's page: drawn when there is a round, drawn anew when there is another.
"use strict";
(() => {
  const { plain, style, themed, library } = window.cairnPlots;
  const version = () => document.getElementById("version");
  const place = document.getElementById("curves");
  let wanted = "", shown = "", busy = false;
  let figures = [];

  function panel(figure) {
    const found = document.getElementById(`curve-${figure.id}`);
    if (found) return found.querySelector(".plot");
    const section = document.createElement("section");
    section.id = `curve-${figure.id}`;
    section.className = "card curve";
    const title = document.createElement("h3");
    title.textContent = figure.title;
    const plot = document.createElement("div");
    plot.className = "plot";
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${figure.title}, round by round`);
    section.append(title, plot);
    place.append(section);
    return plot;
  }

  // The line of all sites has no colour of its own: it is drawn in that of the text.
  const coloured = (trace) => ({ ...trace, line: { color: style("--ink"), ...trace.line } });

  // All panels are there before the first is drawn in: how wide each is depends on how many there are.
  const paint = () => {
    const panels = figures.map(panel);
    return Promise.all(figures.map((figure, i) =>
      Plotly.react(panels[i], figure.data.map(coloured), themed({ ...figure.layout, uirevision: "run" }), plain)));
  };

  async function draw() {
    wanted = version().dataset.version;
    if (busy || !wanted || wanted === shown) return;
    busy = true;
    try {
      const asked = wanted;
      const answer = await fetch(`/runs/${version().dataset.name}/curves.json?v=${asked}`, { credentials: "same-origin" });
      if (!answer.ok) throw new Error(`curves: ${answer.status}`);
      [figures] = await Promise.all([answer.json(), library()]);
      place.hidden = false;
      place.querySelector(".loading")?.remove();
      await paint();
      shown = asked;
      place.dataset.drawn = asked;
    } catch (error) {
      if (!shown) place.querySelector(".loading").textContent = "The curves could not be drawn; reload the page to try again.";
      place.hidden = false;
      wanted = shown;
      console.error(error);
    } finally {
      busy = false;
    }
    if (wanted !== shown) draw();
  }

  document.addEventListener("cairn:live", (event) => { if (event.target.id === "version") draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (shown) paint(); });
  draw();
})();
