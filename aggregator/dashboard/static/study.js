// The plots of a study's page: the map of the heavy hitters, the rank–count curve and the marker heat map.
"use strict";
(() => {
  const version = () => document.getElementById("version");
  const map = document.getElementById("embedding");
  const bandChoice = document.getElementById("band");
  const { plain, style, narrow, themed, library } = window.cairnPlots;
  const ARRAYS = { u1: Uint8Array, i2: Int16Array, f4: Float32Array, f8: Float64Array };
  const grouped = new Intl.NumberFormat("en"); // one for all: making one for each number takes most of a second
  let shown = "";    // version of the results that is drawn
  let points = null; // the map's arrays
  let alone = null;  // the cluster that is shown alone
  let others = [];   // how to draw the other plots again

  function read(typed) {
    const bytes = Uint8Array.from(atob(typed.bdata), (c) => c.charCodeAt(0));
    return new ARRAYS[typed.dtype](bytes.buffer);
  }

  async function get(figure, extra = "") {
    const where = version().dataset;
    const answer = await fetch(`/studies/${where.name}/${figure}.json?v=${where.version}${extra}`, { credentials: "same-origin" });
    if (!answer.ok) throw new Error(`${figure}: ${answer.status}`);
    return answer.json();
  }

  function names() {
    const found = new Map();
    for (const entry of document.querySelectorAll("#clusters .entry")) {
      found.set(Number(entry.dataset.cluster), entry.querySelector(".name").textContent.trim());
    }
    return found;
  }

  function labels() {
    const called = names();
    const n = points.count.length, digits = points.digits.length / n;
    return Array.from({ length: n }, (_, i) => {
      const key = points.digits.subarray(i * digits, (i + 1) * digits).join(" · ");
      const cluster = called.get(points.cluster[i]) ?? "none";
      return `${grouped.format(points.count[i])} pixels, rank ${grouped.format(n - i)}<br>digits ${key}<br>cluster ${cluster}`;
    });
  }

  const bar = (title, more) => ({
    title: { text: title, side: "right" }, thickness: 10, len: 0.6, outlinewidth: 0, x: 1, xpad: 0, ...more,
  });

  // A colour for each cluster, as a scale of steps: one number a point is less to send to the GPU than one string.
  function byCluster() {
    const n = Math.max(1, points.colours.length);
    const scale = points.colours.flatMap((colour, i) => [[i / n, colour], [(i + 1) / n, colour]]);
    return { color: points.cluster, cmin: -0.5, cmax: n - 0.5, colorscale: scale.length ? scale : "Greys", showscale: false };
  }

  function byCount() {
    const logs = points.count.map((count) => Math.log10(Math.max(1, count)));
    const top = Math.ceil(logs.reduce((a, b) => Math.max(a, b), 0));
    const ticks = Array.from({ length: top + 1 }, (_, i) => i);
    const colorbar = bar("pixels", { tickvals: ticks, ticktext: ticks.map((i) => grouped.format(10 ** i)) });
    const low = logs.reduce((a, b) => Math.min(a, b), Infinity);
    return { color: logs, cmin: low, cmax: Math.max(top, low + 1), colorscale: "Viridis", showscale: true, colorbar };
  }

  async function byBand() {
    const band = await get("band", `&band=${bandChoice.value}`);
    const name = points.bands[Number(bandChoice.value)];
    return { color: read(band.values), cmin: band.low, cmax: band.high, colorscale: "Viridis", showscale: true, colorbar: bar("", { tickformat: ".2~g", nticks: 5 }), name };
  }

  const choice = () => document.querySelector('input[name="colour"]:checked').value;

  async function marker() {
    const how = choice();
    bandChoice.hidden = how !== "band";
    const { name, ...found } = how === "band" ? await byBand() : how === "count" ? byCount() : byCluster();
    map.dataset.colour = how === "band" ? `band ${name}` : how;
    return { ...points.marker, ...found };
  }

  function selected() {
    if (alone === null) return null;
    const found = [];
    points.cluster.forEach((cluster, i) => { if (cluster === alone) found.push(i); });
    return found;
  }

  async function drawMap() {
    const [figure] = await Promise.all([get("embedding"), library()]);
    const trace = figure.data[0];
    points = {
      count: read(figure.count), digits: read(figure.digits), cluster: read(figure.cluster),
      colours: figure.colours, bands: figure.bands,
      marker: { ...trace.marker, size: read(trace.marker.size) },
    };
    const before = bandChoice.value;
    bandChoice.replaceChildren(...figure.bands.map((band, i) => new Option(band, String(i))));
    if (before) bandChoice.value = before;
    const data = [{
      ...trace, x: read(trace.x), y: read(trace.y), text: labels(), marker: await marker(),
      selectedpoints: selected(), unselected: { marker: { opacity: 0.06 } },
    }];
    map.replaceChildren();
    await Plotly.newPlot(map, data, themed({ ...figure.layout, uirevision: "map" }), { ...plain, scrollZoom: true, doubleClick: "reset" });
    map.dataset.drawn = shown;
  }

  async function drawRanks() {
    const figure = await get("ranks");
    const node = document.getElementById("ranks");
    others.push(() => {
      figure.data.forEach((trace, i) => { trace.line = { ...trace.line, color: style(i ? "--muted" : "--accent"), width: i ? 1.5 : 2 }; });
      return Plotly.react(node, figure.data, themed(figure.layout), plain);
    });
  }

  async function drawMarkers() {
    const figure = await get("markers");
    const node = document.getElementById("markers");
    others.push(() => {
      const [trace] = figure.data;
      // From the page's ground, through nothing, to its accent: below and above the clusters' mean.
      const drawn = { ...trace, colorscale: [[0, style("--below")], [0.5, style("--surface")], [1, style("--above")]] };
      let layout = figure.layout;
      if (narrow()) {
        // Bands become rows, so that forty of them need no sideways scrolling.
        const turn = (rows) => rows[0].map((_, i) => rows.map((row) => row[i]));
        drawn.x = trace.y; drawn.y = trace.x; drawn.z = turn(trace.z); drawn.text = turn(trace.text);
        drawn.hovertemplate = trace.hovertemplate.replace("%{y}, %{x}", "%{x}, %{y}");
        layout = { ...layout, height: 120 + 18 * trace.x.length };
      } else {
        layout = { ...layout, height: Math.max(320, 130 + 24 * trace.y.length) };
      }
      return Plotly.react(node, [drawn], themed(layout), plain);
    });
  }

  async function draw() {
    const wanted = version().dataset.version;
    if (!wanted || wanted === shown) return;
    shown = wanted;
    for (const id of ["map", "charts"]) document.getElementById(id).hidden = false;
    others = [];
    try {
      await drawMap();
      await Promise.all([drawRanks(), drawMarkers()]);
      await Promise.all(others.map((redraw) => redraw()));
      document.getElementById("charts").dataset.drawn = shown;
    } catch (error) {
      shown = "";
      const words = document.createElement("p");
      words.className = "loading";
      words.textContent = "The map could not be drawn; reload the page to try again.";
      if (!map.dataset.drawn) map.replaceChildren(words);
      console.error(error);
    }
  }

  async function recolour() {
    if (!points) return;
    const made = await marker();
    await Plotly.restyle(map, { marker: [made] });
  }

  for (const input of document.querySelectorAll('input[name="colour"]')) input.addEventListener("change", recolour);
  bandChoice.addEventListener("change", recolour);

  document.querySelector(".zoom").addEventListener("click", (event) => {
    const factor = event.target.dataset?.zoom;
    if (!factor || !points) return;
    if (factor === "0") {
      Plotly.relayout(map, { "xaxis.autorange": true, "yaxis.autorange": true });
      return;
    }
    const change = {};
    for (const name of ["xaxis", "yaxis"]) {
      const [a, b] = map._fullLayout[name].range;
      const middle = (a + b) / 2, half = ((b - a) / 2) * Number(factor);
      change[`${name}.range`] = [middle - half, middle + half];
    }
    Plotly.relayout(map, change);
  });

  function press() {
    for (const entry of document.querySelectorAll("#clusters .entry")) {
      entry.setAttribute("aria-pressed", String(Number(entry.dataset.cluster) === alone));
    }
  }

  document.getElementById("map").addEventListener("click", (event) => {
    const entry = event.target.closest?.(".entry");
    if (!entry || !points) return;
    const cluster = Number(entry.dataset.cluster);
    alone = alone === cluster ? null : cluster;
    press();
    Plotly.restyle(map, { selectedpoints: [selected()] });
  });

  document.addEventListener("cairn:live", (event) => {
    if (event.target.id === "clusters") {
      press();
      if (points && map.dataset.drawn) Plotly.restyle(map, { text: [labels()] });
    }
    if (event.target.id === "version") draw();
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", async () => {
    if (!points) return;
    await Plotly.relayout(map, themed({}));
    for (const redraw of others) await redraw();
  });

  draw();
})();
