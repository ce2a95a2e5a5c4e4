// The explanation page: choose a model and an image, see what the model says of it and what that rests on.
"use strict";
const $ = (id) => document.getElementById(id);
const VOTES = 6; // classes whose votes are shown, those of the highest probability
let got = { models: [], images: [], total: 0, run: null }, listed = "", found = null, view = "";
let asking = 0, busy = false, silent = false, waiting = null, typed = 0, timer = 0;

async function ask(address, question) {
  let answer;
  try {
    answer = await fetch(address, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(question),
    });
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

const hint = (words) => ($("hint").textContent = words);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 && share > 0 ? 1 : 0)} %`;

function make(name, words, ...classes) {
  const element = document.createElement(name);
  if (words !== undefined) element.textContent = words;
  element.classList.add(...classes);
  return element;
}

// ---------------------------------------------------------------------------------------------- what can be chosen

async function list() {
  clearTimeout(timer);
  const mine = ++typed;
  let answer;
  try {
    answer = await ask("explain/images", { run: $("model").value || null, part: $("filter").value });
  } catch (error) {
    if (mine !== typed) return;
    timer = setTimeout(list, 3000);
    silent = true;
    say(error.message);
    return;
  }
  if (mine !== typed) return;
  timer = setTimeout(list, 10000); // a round that has ended meanwhile has better weights
  if (silent) say("");
  silent = false;
  if (JSON.stringify(answer) === listed) return;
  listed = JSON.stringify(answer);
  got = answer;
  const models = got.models.map((model) => new Option(`${model.run}, round ${model.round}`, model.run));
  $("model").replaceChildren(...models);
  if (got.run) $("model").value = got.run;
  fillImages();
}

function fillImages() {
  const before = $("image").value;
  const groups = [["Not learned from", false], ["Learned from", true]].map(([label, learned]) => {
    const group = make("optgroup");
    group.label = label;
    const fit = got.images.filter((one) => one.learned === learned);
    group.append(...fit.map((one) => new Option(one.group ? `${one.name} · ${one.group}` : one.name, one.image)));
    return group;
  });
  $("image").replaceChildren(...groups.filter((group) => group.children.length));
  $("image").value = before;
  const more = got.total - got.images.length;
  $("total").textContent = more > 0 ? `and ${more} more; give a part of the name` : "";
  allow();
}

function allow() {
  $("again").disabled = !$("image").value || !$("model").value;
  if (busy || found) return;
  if (!got.models.length) hint("No model that classifies has come to this site yet");
  else if (!got.total) hint($("filter").value ? "No image has this in its name" : "No labelled image is of this model's classes");
  else hint("Choose an image");
}

// ---------------------------------------------------------------------------------------------------- the answer

// One question at a time: of what was chosen meanwhile only the last is asked.
async function explain() {
  const question = { run: $("model").value, image: $("image").value };
  if (!question.run || !question.image) return;
  if (busy) {
    waiting = question;
    return;
  }
  busy = true;
  for (let next = question; next; [next, waiting] = [waiting, null]) await answer(next);
  busy = false;
  allow();
}

async function answer(question) {
  const mine = ++asking;
  $("frame").classList.add("waiting");
  hint("The model looks at the image …");
  try {
    const content = await ask("explain/answer", question);
    if (mine !== asking) return;
    found = content;
    say("");
    hint("");
    show();
  } catch (error) {
    if (mine !== asking) return;
    forget();
    say(error.message);
  } finally {
    $("frame").classList.remove("waiting");
  }
}

function forget() {
  asking += 1;
  found = waiting = null;
  $("view").hidden = $("scale").hidden = $("patches").hidden = $("answer").hidden = $("parts").hidden = true;
  $("headline").textContent = "No answer yet";
  $("words").textContent = $("known").textContent = "";
  for (const id of ["views", "remarks"]) $(id).replaceChildren();
  hint("");
  allow();
}

function show() {
  const order = found.classes.map((_, k) => k).sort((a, b) => found.probabilities[b] - found.probabilities[a]);
  const best = order[0];
  $("headline").textContent = `${found.classes[best]}, ${percent(found.probabilities[best])}`;
  const known = found.label === null ? "what it shows is not known" : `labelled ${found.label}`;
  $("known").textContent = `${found.name} · ${known}`;
  $("known").classList.toggle("other", found.label !== null && found.label !== found.classes[best]);
  $("answer").hidden = false;
  $("answer").tBodies[0].replaceChildren(...order.map(classRow));
  showParts(best);
  $("remarks").replaceChildren(...found.remarks.map((words) => make("li", words)));
  $("views").replaceChildren(...found.panels.map(viewButton));
  const before = found.panels.findIndex((panel) => panel.title === view);
  look(before >= 0 ? before : found.patches.length ? 0 : 1); // a mask, if the model has one, before the image itself
  showPatches(order.slice(0, VOTES).sort((a, b) => a - b));
}

function dotted(k) {
  const dot = make("span", undefined, "dot");
  dot.style.background = found.colours[k];
  return dot;
}

function meter(share, colour) {
  const bar = make("span", undefined, "meter"), inside = make("i");
  inside.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  inside.style.background = colour;
  bar.append(inside);
  return bar;
}

function classRow(k) {
  const row = make("tr"), name = make("td"), value = make("td", percent(found.probabilities[k]), "number");
  name.append(dotted(k), found.classes[k]);
  value.append(meter(found.probabilities[k], found.colours[k]));
  row.append(name, value);
  return row;
}

function showParts(best) {
  $("parts").hidden = !found.parts.length;
  const head = make("tr");
  head.append(make("th", "It sees"), make("th", found.classes[best], "number"));
  $("parts").tHead.replaceChildren(head);
  $("parts").tBodies[0].replaceChildren(...found.parts.map((part) => {
    const row = make("tr");
    row.append(make("td", part.name), make("td", percent(part.probabilities[best]), "number"));
    return row;
  }));
}

function viewButton(panel, number) {
  const button = make("button", panel.title);
  button.type = "button";
  button.addEventListener("click", () => look(number));
  return button;
}

function look(number) {
  const panel = found.panels[number];
  view = panel.title;
  $("view").src = `data:image/png;base64,${panel.png}`;
  $("view").alt = `${panel.title}: ${panel.words}`;
  $("view").hidden = false;
  $("words").textContent = panel.words;
  $("scale").hidden = !panel.scale;
  $("low").textContent = Number(panel.low.toPrecision(3));
  $("high").textContent = Number(panel.high.toPrecision(3));
  $("scale-name").textContent = panel.scale;
  [...$("views").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === number)));
}

// ---------------------------------------------------------------------------------------------------- the patches

function showPatches(classes) {
  $("patches").hidden = !found.patches.length;
  const rest = found.places - found.patches.length;
  const places = found.places === 1 ? "1 place" : `${found.places} places`;
  $("places").textContent = `${places}, patches of ${found.side} px${rest > 0 ? `; ${rest} of less weight are left out` : ""}`;
  const most = Math.max(1e-9, ...found.patches.flatMap((patch) => patch.votes.map(Math.abs)));
  const signed = found.patches.some((patch) => patch.votes.some((vote) => vote < 0));
  document.querySelector("#patches ol").replaceChildren(...found.patches.map((patch, i) => {
    const item = make("li"), image = make("img"), told = make("div"), votes = make("table"), head = make("h3", i + 1);
    image.src = `data:image/png;base64,${patch.png}`;
    image.alt = `Patch ${i + 1}`;
    image.style.borderColor = found.colours[patch.votes.indexOf(Math.max(...patch.votes))];
    head.append(make("span", `weight ${patch.weight.toFixed(3)}`));
    const body = votes.createTBody();
    body.append(...classes.map((k) => voteRow(k, patch.votes[k], most, signed)));
    const times = patch.times > 1 ? `, drawn ${patch.times} times` : "";
    told.append(head, votes, make("p", `at ${patch.x}, ${patch.y}${times}`, "quiet"));
    item.append(image, told);
    return item;
  }));
}

function voteRow(k, vote, most, signed) {
  const row = make("tr"), bar = make("td"), track = meter(Math.abs(vote / most) / (signed ? 2 : 1), found.colours[k]);
  if (signed) track.firstChild.style.marginLeft = `${50 + 50 * Math.min(vote / most, 0)}%`;
  bar.append(track);
  row.append(make("td", found.classes[k]), bar, make("td", vote.toFixed(2), "number"));
  return row;
}

// ---------------------------------------------------------------------------------------------------- what people do

$("model").addEventListener("change", () => {
  listed = "";
  forget();
  list();
});
$("filter").addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(list, 250);
});
$("image").addEventListener("change", () => {
  allow();
  explain();
});
$("again").addEventListener("click", explain);
list();
