// What all pages with plots share: Plotly when it is needed, and the page's colours and fonts on its figures.
"use strict";
window.cairnPlots = (() => {
  const plain = { displayModeBar: false, responsive: true, displaylogo: false };
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const narrow = () => matchMedia("(max-width: 700px)").matches;

  // Plotly is large: it comes after the page is there, and only when there is something to draw.
  let plotly = null;
  const library = () => plotly ??= new Promise((resolve, reject) => {
    const script = Object.assign(document.createElement("script"), { src: document.getElementById("version").dataset.plotly });
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => { plotly = null; reject(new Error("Plotly did not load")); });
    document.head.append(script);
  });

  function themed(layout) {
    const axis = (given) => ({ gridcolor: style("--line"), zerolinecolor: style("--line"), linecolor: style("--line"), ...given });
    return {
      ...layout,
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: style("--sans"), size: 12, color: style("--muted") },
      hoverlabel: { bgcolor: style("--ink"), bordercolor: style("--ink"), align: "left", font: { family: style("--sans"), size: 13, color: style("--surface") } },
    };
  }

  return { plain, style, narrow, themed, library };
})();
