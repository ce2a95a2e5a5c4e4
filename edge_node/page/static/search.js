// The search page: choose a task and an image, click a start, watch the agent. Positions are in pixels of the image.
"use strict";
const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), chart = $("chart");
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
const slices = new Map(); // slice -> picture, of the image shown
let scenes = [], models = [], scene = null, picture = null, shownSlice = 0;
let path = null, step = 0, timer = 0, asking = 0, listed = "";

async function ask(address, question) {
  const options = question
    ? { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(question) }
    : { cache: "no-store" };
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("the edge node does not answer; is the service running?");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.sentence || `the edge node answered ${answer.status}`);
  return content;
}

function say(sentence) {
  $("notice").textContent = sentence ? sentence[0].toUpperCase() + sentence.slice(1) + "." : "";
  $("notice").hidden = !sentence;
}

// ---------------------------------------------------------------------------------------------- what can be chosen

function fill(select, values, words) {
  const before = select.value;
  select.replaceChildren(...values.map((value) => new Option(words(value), value)));
  if (values.includes(before)) select.value = before;
  else if (values.length) select.selectedIndex = 0;
}

const modelName = (model) => `${model.run}, round ${model.round}`;

function fillModels() {
  const fit = models.filter((model) => model.tasks.includes($("task").value));
  fill($("model"), fit.map((model) => model.run), (run) => modelName(fit.find((model) => model.run === run)));
}

function fillImages() {
  const part = $("filter").value.toLowerCase();
  const fit = scenes.filter((one) => one.tasks.includes($("task").value) && one.name.toLowerCase().includes(part));
  fill($("image"), fit.map((one) => one.image), (image) => fit.find((one) => one.image === image).name);
  const chosen = scenes.find((one) => one.image === $("image").value) || null;
  if (chosen?.image !== scene?.image) openScene(chosen);
  else scene = chosen;
  allow();
}

function allow() {
  const able = Boolean(scene && picture && $("model").value);
  $("middle").disabled = !able;
  canvas.style.cursor = able ? "crosshair" : "default";
  if (!models.length) hint("No model yet: it comes with the first round of a training run");
  else if (!$("model").value) hint("No model of this site searches for this");
  else if (!path && able) hint("Click where the search is to start");
  else if (!picture) hint("");
}

function hint(words) {
  $("hint").textContent = words;
}

async function loadScenes() {
  let got;
  try {
    got = await ask("search/scenes");
  } catch (error) {
    say(error.message);
    setTimeout(loadScenes, 3000);
    return;
  }
  setTimeout(loadScenes, 10000); // a round that has ended meanwhile has better weights
  if (JSON.stringify(got) === listed) return;
  listed = JSON.stringify(got);
  ({ scenes, models } = got);
  say(scenes.length || !models.length ? "" : "the trainer has found no image; see training.scenes in site.toml");
  const tasks = [...new Set(scenes.flatMap((one) => one.tasks))].sort();
  fill($("task"), tasks, (task) => task);
  fillModels();
  fillImages();
}

// ---------------------------------------------------------------------------------------------------- the image

async function openScene(chosen) {
  scene = chosen;
  picture = null;
  slices.clear();
  forget();
  const deep = chosen !== null && chosen.depth > 1;
  $("slices").hidden = !deep;
  if (chosen) {
    $("slice").max = chosen.depth - 1;
    await showSlice(Math.floor(chosen.depth / 2));
  }
  draw();
  allow();
}

async function showSlice(number) {
  const of = scene;
  shownSlice = number;
  $("slice").value = number;
  $("slice-now").textContent = `${number + 1} of ${of.depth}`;
  if (!slices.has(number)) slices.set(number, fetchSlice(of, number));
  try {
    const got = await slices.get(number);
    if (of !== scene || number !== shownSlice) return;
    picture = got;
    say("");
  } catch (error) {
    slices.delete(number);
    if (of === scene) say(error.message);
    return;
  }
  draw();
  allow();
}

async function fetchSlice(of, number) {
  const got = await ask("search/image", { image: of.image, slice: number });
  const image = new Image();
  image.src = `data:image/png;base64,${got.png}`;
  await image.decode();
  return { image, width: got.width, height: got.height };
}

// ---------------------------------------------------------------------------------------------------- the search

function forget() {
  clearInterval(timer);
  path = null;
  asking += 1;
  $("again").disabled = $("step").disabled = true;
  $("headline").textContent = "No search yet";
  for (const id of ["measure", "found", "error"]) $(id).textContent = "–";
  $("step-now").textContent = $("chart-name").textContent = "";
}

async function search(start) {
  forget();
  const mine = asking;
  path = { positions: [start], boxes: [0], waiting: true, end: 0 };
  step = 0;
  draw();
  hint("The agent searches …");
  try {
    const question = { run: $("model").value, task: $("task").value, image: scene.image, start };
    const found = await ask("search/path", question);
    if (mine !== asking) return;
    path = found;
    say("");
  } catch (error) {
    if (mine !== asking) return;
    path = null;
    say(error.message);
    draw();
    allow();
    return;
  }
  hint("");
  $("again").disabled = $("step").disabled = false;
  $("step").max = path.positions.length - 1;
  play();
}

function play() {
  clearInterval(timer);
  goTo(calm ? path.positions.length - 1 : 0);
  if (calm) return;
  timer = setInterval(() => {
    if (step + 1 >= path.positions.length) clearInterval(timer);
    else goTo(step + 1);
  }, 1000 / $("speed").value);
}

const last = () => path.positions.length - 1;
const numbers = (point) => point.map((x) => Math.round(x)).join(", ");

function goTo(number) {
  step = number;
  $("step").value = number;
  $("step-now").textContent = `step ${number} of ${last()}`;
  const over = number === last();
  const measures = path.distance_mm || path.q;
  $("measure-name").textContent = path.distance_mm ? "Distance" : "Value";
  $("measure").textContent = path.distance_mm ? `${measures[number].toPrecision(3)} mm` : measures[number].toFixed(2);
  $("headline").textContent = over ? `Ended after ${last()} steps` : "Searching";
  $("found").textContent = over ? numbers(path.positions[path.end]) : "–";
  $("error").textContent = !over ? "–" : path.error_mm === null ? "unknown" : `${path.error_mm.toPrecision(3)} mm`;
  $("chart-name").textContent = path.distance_mm
    ? "Distance to the landmark in mm, over the steps"
    : "Highest Q of the agent, over the steps";
  const z = path.positions[number][2];
  if (scene.depth > 1 && z !== undefined && Math.round(z) !== shownSlice) showSlice(Math.round(z));
  draw();
}

// ---------------------------------------------------------------------------------------------------- drawing

function sized(element) {
  const ratio = devicePixelRatio || 1;
  const width = Math.round(element.clientWidth * ratio), height = Math.round(element.clientHeight * ratio);
  if (element.width !== width || element.height !== height) Object.assign(element, { width, height });
  const pen = element.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, element.clientWidth, element.clientHeight);
  return pen;
}

// Where the image lies on the canvas: the scale and the corner, in CSS pixels.
function placed() {
  const scale = Math.min(canvas.clientWidth / picture.width, canvas.clientHeight / picture.height);
  return {
    scale,
    left: (canvas.clientWidth - scale * picture.width) / 2,
    top: (canvas.clientHeight - scale * picture.height) / 2,
  };
}

function draw() {
  const pen = sized(canvas);
  if (!picture) return drawChart();
  const { scale, left, top } = placed();
  pen.drawImage(picture.image, left, top, scale * picture.width, scale * picture.height);
  const at = (point) => [left + (point[0] + 0.5) * scale, top + (point[1] + 0.5) * scale];
  if (path) {
    if (path.landmark) cross(pen, at(path.landmark), "#ff6f91");
    trail(pen, path.positions.slice(0, step + 1).map(at));
    dot(pen, at(path.positions[0]), 5, "#ffffff");
    const over = !path.waiting && step === last();
    if (!over && path.boxes[step]) box(pen, at(path.positions[step]), (path.boxes[step] * scale) / 2);
    if (!over) dot(pen, at(path.positions[step]), 5, "#f2b134");
    else dot(pen, at(path.positions[path.end]), 6, "#3ad1bd");
  }
  drawChart();
}

function trail(pen, points) {
  if (points.length < 2) return;
  for (const [width, colour] of [[4.5, "rgb(16 19 22 / 65%)"], [2, "#f2b134"]]) {
    pen.beginPath();
    points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    Object.assign(pen, { lineWidth: width, strokeStyle: colour, lineJoin: "round" });
    pen.stroke();
  }
}

function dot(pen, [x, y], radius, colour) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  Object.assign(pen, { fillStyle: colour, strokeStyle: "#101316", lineWidth: 1.5 });
  pen.fill();
  pen.stroke();
}

function box(pen, [x, y], half) {
  for (const [width, colour] of [[4, "rgb(16 19 22 / 60%)"], [1.6, "#f2b134"]]) {
    Object.assign(pen, { lineWidth: width, strokeStyle: colour });
    pen.strokeRect(x - half, y - half, 2 * half, 2 * half);
  }
}

function cross(pen, [x, y], colour) {
  for (const [width, stroke] of [[4, "rgb(16 19 22 / 60%)"], [2, colour]]) {
    Object.assign(pen, { lineWidth: width, strokeStyle: stroke });
    pen.beginPath();
    pen.arc(x, y, 9, 0, 2 * Math.PI);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 5 * dx, y + 5 * dy);
      pen.lineTo(x + 14 * dx, y + 14 * dy);
    }
    pen.stroke();
  }
}

function drawChart() {
  const pen = sized(chart);
  const values = path && !path.waiting ? path.distance_mm || path.q : null;
  if (!values) return;
  const style = getComputedStyle(document.documentElement);
  const width = chart.clientWidth - 46, height = chart.clientHeight - 12;
  const low = path.distance_mm ? 0 : Math.min(...values), high = Math.max(...values, low + 1e-9);
  const x = (i) => 42 + (width * i) / Math.max(last(), 1);
  const y = (value) => 6 + (height * (high - value)) / (high - low);
  Object.assign(pen, { fillStyle: style.getPropertyValue("--quiet"), font: "12px system-ui, sans-serif", textAlign: "right" });
  pen.fillText(high.toFixed(high < 10 ? 1 : 0), 36, 14);
  pen.fillText(low.toFixed(low && Math.abs(low) < 10 ? 1 : 0), 36, 6 + height);
  pen.strokeStyle = style.getPropertyValue("--line");
  pen.strokeRect(42, 6, width, height);
  pen.beginPath();
  values.forEach((value, i) => (i ? pen.lineTo(x(i), y(value)) : pen.moveTo(x(i), y(value))));
  Object.assign(pen, { strokeStyle: style.getPropertyValue("--accent"), lineWidth: 2, lineJoin: "round" });
  pen.stroke();
  dot(pen, [x(step), y(values[step])], 4, "#f2b134");
}

// ---------------------------------------------------------------------------------------------------- what people do

canvas.addEventListener("click", (event) => {
  if ($("middle").disabled) return;
  const { scale, left, top } = placed();
  const x = Math.floor((event.offsetX - left) / scale), y = Math.floor((event.offsetY - top) / scale);
  if (x >= 0 && y >= 0 && x < picture.width && y < picture.height) search(withSlice([x, y]));
});
const withSlice = (point) => (scene.depth > 1 ? [...point, shownSlice] : point);
$("middle").addEventListener("click", () =>
  search(withSlice([Math.floor(picture.width / 2), Math.floor(picture.height / 2)])));
$("again").addEventListener("click", play);
$("step").addEventListener("input", () => {
  clearInterval(timer);
  goTo(Number($("step").value));
});
$("speed").addEventListener("input", () => {
  if (!path || path.waiting || step === last()) return;
  const from = step;
  play();
  goTo(from);
});
$("slice").addEventListener("input", () => showSlice(Number($("slice").value)));
$("task").addEventListener("change", () => {
  forget();
  fillModels();
  fillImages();
  draw();
});
$("model").addEventListener("change", () => {
  forget();
  draw();
  allow();
});
$("filter").addEventListener("input", fillImages);
$("image").addEventListener("change", fillImages);
new ResizeObserver(draw).observe(canvas);
loadScenes();
