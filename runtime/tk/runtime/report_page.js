"use strict";
// Every text goes in through textContent: names of files and classes are never parsed as HTML.
const report = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const CHUNK = 48, ROWS = 6;
const STATES = ["all", "unknown", "error", "empty"];
const state = {};

function make(tag, cls, text) {
  const node = document.createElement(tag);
  if (cls) node.className = cls;
  if (text !== undefined) node.textContent = text;
  return node;
}
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const fixed = x => x === null ? "–" : x.toFixed(2);
const byName = new Intl.Collator(undefined, { numeric: true }).compare;

// How sure a detection is: its lead over the next class, else the score there is. Small = doubtful.
const sureness = d => d.margin ?? d.score ?? d.proposal ?? 0;
for (const image of report.images) {
  image.detections.sort((a, b) => sureness(a) - sureness(b));
  image.sure = image.error ? -Infinity : image.detections.length ? sureness(image.detections[0]) : Infinity;
  image.unknown = image.detections.some(d => report.classes[d.cls].unknown);
}
const scores = report.images.flatMap(i => i.detections.map(d => d.score)).filter(s => s !== null);
const LOW = Math.floor(scores.reduce((a, b) => Math.min(a, b), 0) * 100) / 100;
const HIGH = Math.ceil(scores.reduce((a, b) => Math.max(a, b), 1) * 100) / 100;

function readState() {
  const hash = new URLSearchParams(location.hash.slice(1));
  const number = (key, other) => hash.has(key) && isFinite(hash.get(key)) ? Number(hash.get(key)) : other;
  state.text = hash.get("text") ?? "";
  state.sort = ["name", "count"].find(s => s === hash.get("sort")) ?? "doubt";
  state.show = STATES.find(s => s === hash.get("show")) ?? "all";
  state.least = number("least", LOW);
  state.most = number("most", HIGH);
  state.classes = new Set(report.classes.flatMap((c, i) => hash.getAll("class").includes(c.name) ? [i] : []));
}
function writeState() {
  const hash = new URLSearchParams();
  if (state.text) hash.set("text", state.text);
  if (state.sort !== "doubt") hash.set("sort", state.sort);
  if (state.show !== "all") hash.set("show", state.show);
  if (state.least > LOW) hash.set("least", state.least);
  if (state.most < HIGH) hash.set("most", state.most);
  for (const i of state.classes) hash.append("class", report.classes[i].name);
  history.replaceState(null, "", "#" + hash);
}

const narrowed = () => state.classes.size > 0 || state.least > LOW || state.most < HIGH;
const wanted = d => (!state.classes.size || state.classes.has(d.cls)) &&
  (state.least <= LOW || (d.score !== null && d.score >= state.least)) &&
  (state.most >= HIGH || (d.score !== null && d.score <= state.most));
const shows = {
  all: () => true, unknown: i => i.unknown, error: i => i.error, empty: i => !i.error && !i.detections.length,
};
const orders = {
  doubt: (a, b) => (a.sure === b.sure ? 0 : a.sure - b.sure) || byName(a.name, b.name),
  name: (a, b) => byName(a.name, b.name),
  count: (a, b) => b.detections.length - a.detections.length || byName(a.name, b.name),
};

function row(d) {
  const cls = report.classes[d.cls], item = make("li", cls.unknown ? "unknown" : "");
  if (narrowed() && !wanted(d)) item.classList.add("dim");
  const dot = make("span", "dot");
  dot.style.background = cls.color;
  const score = make("span", "score", fixed(d.score));
  item.title = [
    `score ${fixed(d.score)}`, d.margin !== null && `margin ${fixed(d.margin)}`,
    d.proposal !== null && `detector ${fixed(d.proposal)}${d.prompt ? ` (${d.prompt})` : ""}`,
    ...d.ranked.map(([name, s]) => `${report.names[name]}: ${fixed(s)}`),
  ].filter(Boolean).join("\n");
  item.append(dot, make("span", "name", cls.name), score);
  if (d.next !== null)
    item.append(make("span", "next", `next: ${report.names[d.next]}${d.margin === null ? "" : `, margin ${fixed(d.margin)}`}`));
  return item;
}
function shot(image) {
  if (!image.picture) return make("div", "shot", image.error ? "no picture: not read" : "no picture");
  const link = make("a", "shot"), picture = make("img");
  link.href = image.picture;
  link.target = "_blank";
  link.rel = "noopener";
  picture.loading = "lazy";
  picture.decoding = "async";
  picture.alt = `results on ${image.name}`;
  picture.src = image.picture;
  link.append(picture);
  return link;
}
function card(image) {
  const node = make("article", "card"), body = make("div", "body"), title = make("div", "title");
  if (image.unknown) node.classList.add("has-unknown");
  if (image.error) node.classList.add("has-error");
  const cut = image.name.lastIndexOf("/") + 1;
  if (cut) title.append(make("small", "", image.name.slice(0, cut)));
  title.append(make("span", "", image.name.slice(cut)));
  const size = image.width ? `${image.width} × ${image.height}, ` : "";
  body.append(title);
  if (image.error) body.append(make("div", "error", `Not annotated: ${image.error}`));
  else body.append(make("div", "meta", size + (image.detections.length ? plural(image.detections.length, "detection") : "nothing found")));
  if (image.detections.length) {
    // What was asked for comes first, or it could hide below the fold.
    const found = [...image.detections].sort((a, b) => narrowed() ? wanted(b) - wanted(a) : 0);
    const list = make("ul", "rows"), rest = found.slice(ROWS);
    list.append(...found.slice(0, ROWS).map(row));
    body.append(list);
    if (rest.length) {
      const more = make("button", "more", `show ${rest.length} more`);
      more.onclick = () => { list.append(...rest.map(row)); more.remove(); };
      body.append(more);
    }
  }
  node.append(shot(image), body);
  return node;
}

let matches = [], shown = 0;
function showMore() {
  const next = matches.slice(shown, shown + CHUNK);
  shown += next.length;
  $("grid").append(...next.map(card));
}
function update() {
  const text = state.text.normalize("NFC").toLowerCase();
  matches = report.images.filter(i => shows[state.show](i) && i.name.toLowerCase().includes(text) &&
    (!narrowed() || i.detections.some(wanted))).sort(orders[state.sort]);
  shown = 0;
  $("grid").replaceChildren();
  showMore();
  $("none").hidden = matches.length > 0;
  $("status").textContent = matches.length === report.images.length ? plural(matches.length, "image") :
    `${matches.length.toLocaleString("en")} of ${plural(report.images.length, "image")}`;
  $("least-out").textContent = fixed(state.least);
  $("most-out").textContent = fixed(state.most);
  for (const tile of document.querySelectorAll("button.tile")) tile.ariaPressed = String(tile.dataset.show === state.show);
}
function syncControls() {
  for (const key of ["text", "sort", "least", "most"]) $(key).value = state[key];
  document.querySelectorAll("#classes input").forEach((box, i) => { box.checked = state.classes.has(i); });
}
let timer;
function changed() {
  update();
  clearTimeout(timer); // browsers limit how often the address may change
  timer = setTimeout(writeState, 300);
}

function build() {
  for (const [key, value] of report.summary) {
    const pair = make("div");
    pair.append(make("dt", "", key), make("dd", "", value));
    $("facts").append(pair);
  }
  const tile = (count, label, show, cls) => {
    const node = make(show ? "button" : "div", "tile" + (count && cls ? " " + cls : ""));
    node.append(make("b", "", count.toLocaleString("en")), make("span", "", label));
    if (show) {
      node.dataset.show = show;
      node.onclick = () => { state.show = show; changed(); };
    }
    $("tiles").append(node);
  };
  const count = f => report.images.filter(f).length, c = report.counts;
  tile(c.images, "images", "all");
  tile(c.detections, "detections");
  tile(c.classes, "classes");
  tile(c.unknown, "unknown", "unknown", "warn");
  tile(c.errors, "errors", "error", "bad");
  tile(count(shows.empty), "nothing found", "empty");
  report.classes.forEach((cls, i) => {
    const label = make("label"), box = make("input"), dot = make("span", "dot");
    box.type = "checkbox";
    box.onchange = () => { box.checked ? state.classes.add(i) : state.classes.delete(i); changed(); };
    dot.style.background = cls.color;
    label.append(box, dot, make("span", "name", cls.name), make("span", "count", cls.count.toLocaleString("en")));
    $("classes").append(label);
  });
  for (const key of ["least", "most"]) {
    Object.assign($(key), { min: LOW, max: HIGH, step: 0.01 });
    $(key).oninput = () => { state[key] = Number($(key).value); changed(); };
  }
  $("text").oninput = () => { state.text = $("text").value; changed(); };
  $("sort").onchange = () => { state.sort = $("sort").value; changed(); };
  $("reset").onclick = () => { history.replaceState(null, "", "#"); restore(); };
  $("panel").open = innerWidth > 760;
}
function restore() { readState(); syncControls(); update(); }

build();
restore();
addEventListener("hashchange", restore);
new IntersectionObserver(seen => { if (seen[0].isIntersecting && shown < matches.length) showMore(); },
  { rootMargin: "1200px" }).observe($("end"));
