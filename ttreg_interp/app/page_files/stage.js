// The stage: a picture and pairs of maps. `colour.js` of the report stands in front of this.

const stage = element.querySelector(".stage");
// `asked` and `told`: the query and the drawing that the server has yet to confirm; what it says of
// older ones is no news. One query is asked for at a time, however fast the keys.
const state = {
  built: null, picture: null, drawn: new Set(), query: null, stroke: null, asked: null, askedAt: 0, told: null,
};
const SIDES = ["intact", "intervened"];
const PATIENCE = 3000; // milliseconds until an unanswered query is forgotten

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function patchName(patch) {
  return `patch ${Math.floor(patch / props.value.width)},${patch % props.value.width}`;
}

// ------------------------------------------------------------------ fields: what can be pointed at

function makeField(label) {
  const { height, width } = props.value;
  const field = make("div", {
    class: "field", tabindex: 0, role: "application", "aria-label": label,
    style: `aspect-ratio: ${width} / ${height}`,
  });
  field.addEventListener("pointermove", (event) => readOut(patchAt(field, event)));
  field.addEventListener("pointerleave", () => readOut(state.query));
  field.addEventListener("keydown", moveQuery);
  return field;
}

function makeMap(name) {
  const field = makeField("");
  field.addEventListener("click", (event) => select(patchAt(field, event)));
  field.append(make("canvas"), make("span", { class: "absent" }, `${name}: no such token`),
    make("span", { class: "mark" }));
  return make("div", {}, make("span", { class: "arm" }, name), field);
}

function makePair({ kind }) {
  const ticks = [0, 1, 2].map(() => make("span", { class: "tick" }));
  return make("figure", { class: "pair", id: `${kind}-pair` }, make("figcaption"),
    make("div", { class: "sides" }, ...SIDES.map(makeMap)),
    make("div", { class: "scale", "aria-hidden": "true" }, make("div", { class: "ramp" }),
      make("div", { class: "ticks" }, ...ticks)));
}

function drawPair({ kind, title, maps, unit }) {
  const figure = stage.querySelector(`#${kind}-pair`);
  const format = kind === "attention" ? formatShare : formatNumber;
  const scale = new Scale(kind, maps.filter(Boolean), props.value.log, unit);
  figure.querySelector("figcaption").textContent = title;
  drawScale(figure.querySelector(".scale"), scale, format);
  figure.querySelectorAll(".field").forEach((field, i) => {
    const [canvas, absent, values] = [field.querySelector("canvas"), field.querySelector(".absent"), maps[i]];
    canvas.hidden = !values;
    absent.hidden = Boolean(values);
    if (values) drawMap(canvas, values, props.value, scale);
    field.setAttribute("aria-label", `${title}, ${SIDES[i]}: ${values ? inWords(values, format)
      : "no such token"}. Click, or use the arrow keys, to choose a patch as query.`);
  });
}

function inWords(values, format) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  return `from ${format(least)} to ${format(most)}, largest at ${patchName(values.indexOf(most))}`;
}

// ------------------------------------------------------------------ the picture, and drawing on it

function makePicture() {
  const field = makeField("");
  field.id = "picture";
  field.append(make("img", { src: props.value.picture, alt: "", draggable: "false" }),
    make("canvas", { class: "drawing" }), make("span", { class: "mark" }));
  field.addEventListener("click", (event) => props.value.paint || select(patchAt(field, event)));
  field.addEventListener("pointerdown", (event) => props.value.paint && begin(field, event));
  field.addEventListener("pointermove", (event) => state.stroke && draw(patchAt(field, event)));
  field.addEventListener("pointerup", finish);
  field.addEventListener("pointercancel", finish);
  const clear = make("button", { type: "button", id: "clear" }, "Clear the drawing");
  clear.addEventListener("click", () => { state.drawn.clear(); tellDrawing(); });
  return make("figure", { class: "beside" }, make("figcaption"), field, clear);
}

function drawPicture() {
  const { paint } = props.value;
  stage.querySelector(".beside figcaption").textContent = paint ? "Draw where outliers shall go"
    : "As the model sees it";
  stage.querySelector("#picture").setAttribute("aria-label", paint
    ? "The picture. Draw where outliers shall go: drag, or move with the arrow keys and press Space."
    : "The picture. Click, or use the arrow keys, to choose a patch as query.");
  for (const one of stage.querySelectorAll(".drawing, #clear")) one.hidden = !paint;
  showDrawing();
}

// A stroke that begins on a patch already drawn on erases.
function begin(field, event) {
  event.preventDefault();
  field.focus();
  field.setPointerCapture(event.pointerId);
  const patch = patchAt(field, event);
  state.stroke = { erases: state.drawn.has(patch), last: patch };
  draw(patch);
}

// All patches between the last place and this one: a fast hand leaves no gaps.
function draw(patch) {
  const { width } = props.value;
  const place = (one) => [Math.floor(one / width), one % width];
  const [from, to] = [place(state.stroke.last), place(patch)];
  const steps = Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]), 1);
  for (let step = 0; step <= steps; step++) {
    const [row, column] = [0, 1].map((i) => Math.round(from[i] + ((to[i] - from[i]) * step) / steps));
    state.drawn[state.stroke.erases ? "delete" : "add"](row * width + column);
  }
  state.stroke.last = patch;
  showDrawing();
}

function finish() {
  if (!state.stroke) return;
  state.stroke = null;
  tellDrawing();
}

function showDrawing() {
  const canvas = stage.querySelector(".drawing");
  const { width, height } = props.value;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = "#00e5ff"; // in few photographs
  for (const patch of state.drawn) context.fillRect(patch % width, Math.floor(patch / width), 1, 1);
}

function tellDrawing() {
  state.told = named(state.drawn);
  showDrawing();
  trigger("input", { patches: [...state.drawn] });
}

// ------------------------------------------------------------------ the query

function patchAt(field, event) {
  const { height, width } = props.value;
  const box = field.getBoundingClientRect();
  const cell = (at, length, count) => Math.min(Math.max(Math.floor((at / length) * count), 0), count - 1);
  return cell(event.clientY - box.top, box.height, height) * width
    + cell(event.clientX - box.left, box.width, width);
}

function select(patch) {
  state.query = patch;
  markQuery();
  readOut(patch);
  if (state.asked === null || Date.now() - state.askedAt > PATIENCE) ask();
}

function ask() {
  Object.assign(state, { asked: state.query, askedAt: Date.now() });
  trigger("select", { patch: state.query });
}

function markQuery() {
  const { height, width } = props.value;
  for (const mark of stage.querySelectorAll(".mark")) {
    mark.hidden = state.query === null;
    if (mark.hidden) continue;
    mark.style.top = `${(100 * Math.floor(state.query / width)) / height}%`;
    mark.style.left = `${(100 * (state.query % width)) / width}%`;
    mark.style.height = `${100 / height}%`;
    mark.style.width = `${100 / width}%`;
  }
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function moveQuery(event) {
  const { height, width, paint } = props.value;
  const inside = (at, count) => Math.min(Math.max(at, 0), count - 1);
  if (event.key in MOVES) {
    event.preventDefault();
    const middle = ((height - 1) >> 1) * width + ((width - 1) >> 1);
    const [down, right] = state.query === null ? [0, 0] : MOVES[event.key];
    const from = state.query === null ? middle : state.query;
    select(inside(Math.floor(from / width) + down, height) * width + inside((from % width) + right, width));
  } else if (event.key === " " && paint && event.currentTarget.id === "picture" && state.query !== null) {
    event.preventDefault();
    state.drawn[state.drawn.has(state.query) ? "delete" : "add"](state.query);
    tellDrawing();
  }
}

function readOut(patch) {
  const line = stage.querySelector(".readout");
  if (!line) return;
  if (patch === null) {
    line.textContent = "Point at a patch to read its values; click it to make it the query.";
    return;
  }
  const parts = props.value.pairs.map(({ kind, maps }) => {
    const format = kind === "attention" ? formatShare : formatNumber;
    return `${kind} ${maps.map((values) => (values ? format(values[patch]) : "–")).join(" → ")}`;
  });
  line.textContent = `${patchName(patch)}: ${parts.join("; ")}`;
}

// ------------------------------------------------------------------ all of it

const named = (patches) => [...patches].sort((a, b) => a - b).join();

function takeNews() {
  const { picture, query, drawn } = props.value;
  if (picture !== state.picture) Object.assign(state, { picture, query, asked: null, told: null });
  if (state.asked === null) state.query = query;
  else if (state.asked === query) {
    state.asked = null;
    if (state.query !== query) ask();
  }
  if (state.told === null || state.told === named(drawn)) {
    Object.assign(state, { drawn: new Set(drawn), told: null });
  }
}

// The elements stay while their meaning stays: one that is replaced between press and release of a
// pointer would lose the click, and the focus.
function build() {
  const { picture, pairs } = props.value;
  const built = JSON.stringify([picture, pairs.map(({ kind }) => kind)]);
  if (built === state.built) return;
  state.built = built;
  stage.replaceChildren(makePicture(), ...pairs.map(makePair),
    make("p", { class: "readout", "aria-live": "polite" }));
}

function show() {
  if (!props.value || !props.value.pairs || state.stroke) return;
  takeNews();
  build();
  drawPicture();
  props.value.pairs.forEach(drawPair);
  markQuery();
  readOut(state.query);
}

watch("value", show);
show();
