// The page: one state, one function that draws it, and what changes it.

const facts = JSON.parse(document.getElementById("facts").textContent);
const maps = new Maps(facts);
const base = facts.arms[0];
const find = (id) => document.getElementById(id);
const tokenName = (name) => (name === "CLS" ? "[CLS]" : name);
const armColour = (number) => `var(--arm-${number % 6})`;

const state = {
  image: 0,
  layer: facts.n_layers - 1,
  head: -1,
  query: base.n_cls ? "CLS" : "mean",
  right: facts.arms.length > 1 ? 1 : 0,
  log: false,
  over: false,
};
let shown = null; // what is on the page: the state's maps and values
let pointed = null; // the patch under the pointer

const armNumbers = () => (facts.arms.length > 1 ? [0, state.right] : [0]);
const neuronPanel = new NeuronPanel(facts, maps);

async function change(update) {
  Object.assign(state, update);
  find("maps").setAttribute("aria-busy", "true");
  const wanted = { ...state };
  const sides = await Promise.all(armNumbers().map((number) => maps.load(number, state.image)));
  if (wanted.image !== state.image || wanted.right !== state.right) return;
  draw(sides, update);
  find("maps").setAttribute("aria-busy", "false");
}

function draw(sides, update) {
  const { layer, head, query } = state;
  const norms = sides.map((side) => maps.norms(side, layer));
  const attention = sides.map((side) => maps.attention(side, layer, head, query));
  shown = { sides, norms, attention };
  drawControls();
  drawPair("norm", sides, norms, 0, formatNumber);
  drawPair("attention", sides, attention.map((one) => one && one.values),
    1 / facts.attention.n_keys, formatShare);
  drawShares(sides, attention);
  drawReadout();
  drawImageCurves(sides);
  if ("image" in update || "right" in update) neuronPanel.draw(sides);
}

// ------------------------------------------------------------------ controls

function drawControls() {
  find("layer").value = state.layer;
  find("layer").setAttribute("aria-valuetext", `layer ${state.layer}`);
  find("layer-value").textContent = `${state.layer} of ${facts.n_layers - 1}`;
  find("head").value = state.head;
  find("picture").src = facts.images[state.image].picture;
  for (const under of document.querySelectorAll(".under")) under.src = facts.images[state.image].picture;
  find("picture").alt = `Image ${facts.images[state.image].name}`;
  find("image-name").textContent = facts.images[state.image].name;
  for (const button of find("strip").children) {
    const chosen = Number(button.dataset.image) === state.image;
    button.setAttribute("aria-pressed", chosen);
    if (chosen) keepInView(button);
  }
  for (const chip of find("chips").children) {
    chip.setAttribute("aria-pressed", chip.dataset.query === String(state.query));
  }
  find("patch-chip").hidden = typeof state.query !== "number";
  find("patch-chip").textContent = find("patch-chip").hidden ? "" : queryName();
  find("patch-chip").setAttribute("aria-pressed", "true");
  document.body.classList.toggle("over", state.over);
  markQuery();
}

function keepInView(button) {
  const strip = find("strip");
  strip.scrollLeft = Math.min(Math.max(strip.scrollLeft,
    button.offsetLeft + button.offsetWidth - strip.clientWidth), button.offsetLeft);
}

function patchName(patch) {
  return `patch (${Math.floor(patch / base.width)}, ${patch % base.width})`;
}

function queryName() {
  if (typeof state.query === "number") return patchName(state.query);
  return state.query === "mean" ? "mean over patches" : tokenName(state.query);
}

// The query's block on every map.
function markQuery() {
  const side = state.head >= 0 ? base.rows.heads.query : base.rows.tokens.query;
  for (const mark of document.querySelectorAll(".mark")) {
    mark.hidden = typeof state.query !== "number";
    if (mark.hidden) continue;
    const row = Math.floor(Math.floor(state.query / base.width) / side) * side;
    const column = Math.floor((state.query % base.width) / side) * side;
    mark.style.top = `${(100 * row) / base.height}%`;
    mark.style.left = `${(100 * column) / base.width}%`;
    mark.style.height = `${(100 * Math.min(side, base.height - row)) / base.height}%`;
    mark.style.width = `${(100 * Math.min(side, base.width - column)) / base.width}%`;
  }
}

// ------------------------------------------------------------------ maps

function drawPair(kind, sides, values, unit, format) {
  const pair = find(`${kind}-pair`);
  const known = values.map((one, i) => one && patches(one, sides[i].arm));
  const scale = new Scale(kind, known.filter(Boolean), state.log, unit);
  pair.querySelectorAll(".map").forEach((map, i) => {
    const arm = sides[i].arm;
    map.querySelector(".arm").textContent = arm.name;
    map.querySelector(".arm").style.setProperty("--arm", armColour(armNumbers()[i]));
    map.querySelector(".absent").hidden = Boolean(known[i]);
    const canvas = map.querySelector("canvas");
    canvas.hidden = !known[i];
    const field = map.querySelector(".field");
    if (!known[i]) {
      field.setAttribute("aria-label", `${arm.name} has no ${queryName()}`);
      return;
    }
    drawMap(canvas, known[i], arm, scale);
    const [least, most] = [Math.min(...known[i]), Math.max(...known[i])];
    field.setAttribute("aria-label", `${kind} map of ${arm.name}, layer ${state.layer}, from `
      + `${format(least)} to ${format(most)}, largest at ${patchName(known[i].indexOf(most))}. `
      + "Arrow keys choose a patch as query.");
  });
  if (known.some(Boolean)) drawScale(pair.querySelector(".scale"), scale, format);
  pair.querySelector(".title").textContent = kind === "norm"
    ? `Patch norm after layer ${state.layer}`
    : `Attention of ${blockName()} in layer ${state.layer}, ${headName()}`;
}

function headName() {
  return state.head < 0 ? "mean over heads" : `head ${state.head}`;
}

// What the attention row on show was averaged over.
function blockName() {
  const row = shown.attention.find(Boolean);
  if (!row || row.querySide === 1) return queryName();
  const across = Math.min(row.querySide, base.height);
  const along = Math.min(row.querySide, base.width);
  if (across === base.height && along === base.width) return "the mean over all patches";
  return `the ${across} × ${along} patches around ${patchName(state.query)}`;
}

// ------------------------------------------------------------------ tokens outside the grid

function drawShares(sides, attention) {
  const names = [...new Set(sides.flatMap((side) => side.arm.prefix))];
  const rows = names.map((name) => [tokenName(name), sides.map((side, i) => {
    const at = side.arm.prefix.indexOf(name);
    return at < 0 || !attention[i] ? null : attention[i].values[at];
  })]);
  if (facts.attention.elsewhere) {
    rows.push(["attention bias", attention.map((one) => one && one.elsewhere)]);
  }
  rows.push(["all patches", sides.map((side, i) => attention[i]
    && patches(attention[i].values, side.arm).reduce((sum, value) => sum + value, 0))]);
  find("shares").replaceChildren(...rows.map(([name, values]) => shareItem(name, values)));
  find("shares-title").replaceChildren(`Where the attention of ${blockName()} goes: `,
    ...sides.map((side, i) => {
      const name = document.createElement("span");
      name.textContent = side.arm.name;
      name.style.setProperty("--arm", armColour(armNumbers()[i]));
      return name;
    }));
}

function shareItem(name, values) {
  const item = document.createElement("li");
  const label = document.createElement("span");
  label.textContent = name;
  item.append(label, ...values.map((value, i) => {
    const share = document.createElement("b");
    share.textContent = value === null ? "–" : formatShare(value);
    share.setAttribute("aria-label", `${shown.sides[i].arm.name}: ${share.textContent}`);
    share.style.setProperty("--share", value === null ? 0 : Math.min(value, 1));
    share.style.setProperty("--arm", armColour(armNumbers()[i]));
    return share;
  }));
  return item;
}

// ------------------------------------------------------------------ numbers of one token

function drawReadout() {
  const patch = pointed !== null ? pointed : typeof state.query === "number" ? state.query : null;
  if (patch === null) {
    find("readout").textContent = "Point at a patch to read its values; click it to make it the query.";
    return;
  }
  const parts = shown.sides.map((side, i) => {
    const at = side.arm.prefix.length + patch;
    const row = shown.attention[i];
    const share = row ? `, attention ${formatShare(row.values[at])}` : "";
    return `${side.arm.name}: norm ${formatNumber(shown.norms[i][at])}${share}`;
  });
  find("readout").textContent = `${patchName(patch)} — ${parts.join(" — ")}`;
}

// ------------------------------------------------------------------ curves

function drawImageCurves(sides) {
  const layers = Array.from({ length: facts.n_layers }, (_, layer) => layer);
  const series = { norm: [], attention: [] };
  sides.forEach((side, i) => {
    const colour = armColour(armNumbers()[i]);
    const start = side.arm.prefix.length;
    const norms = layers.map((layer) => maps.norms(side, layer).slice(start).sort());
    const rows = layers.map((layer) => maps.attention(side, layer, state.head, state.query));
    series.norm.push(
      { name: `${side.arm.name}: largest`, colour, values: norms.map((one) => one[one.length - 1]) },
      { name: `${side.arm.name}: median`, colour, dashed: true, values: norms.map(median) });
    series.attention.push({ name: `${side.arm.name}: one patch`, colour,
      values: rows.map((row) => row && Math.max(...row.values.slice(start))) });
    if (side.arm.prefix.some(isAdded)) {
      series.attention.push({ name: `${side.arm.name}: added tokens`, colour, dashed: true,
        values: rows.map((row) => row && addedAttention(side.arm, row)) });
    }
  });
  const rest = { xLabel: "layer", x: layers, cursor: state.layer, onPick: (layer) => change({ layer }) };
  drawChart(find("image-norm-curve"), { title: "Patch norm", series: series.norm, ...rest });
  drawChart(find("image-attention-curve"), { title: `Largest attention of ${blockName()}, ${headName()}`,
    series: series.attention, format: formatShare, linear: true, ...rest });
}

function median(sorted) {
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
}

const isAdded = (name) => name.startsWith("test-time register");

function addedAttention(arm, row) {
  return arm.prefix.reduce((sum, name, i) => (isAdded(name) ? sum + row.values[i] : sum), 0);
}

function drawRunCurves() {
  const layers = Array.from({ length: facts.n_layers }, (_, layer) => layer);
  const rest = { xLabel: "layer", x: layers };
  const coloured = facts.curves.map((arm, i) => ({ ...arm, colour: armColour(i) }));
  drawChart(find("run-norm-curve"), { ...rest, title: "Patch norm",
    series: coloured.flatMap(({ name, colour, max_norm, median_norm }) => [
      { name: `${name}: largest`, colour, values: max_norm },
      { name: `${name}: median`, colour, dashed: true, values: median_norm }]) });
  drawChart(find("run-attention-curve"), { ...rest, format: formatShare, linear: true,
    title: `Attention of ${base.n_cls ? "[CLS]" : "the mean patch"}, mean over heads`,
    series: coloured.flatMap(({ name, colour, max_attention, register_attention }) => [
      { name: `${name}: one patch`, colour, values: max_attention },
      ...(register_attention
        ? [{ name: `${name}: added tokens`, colour, dashed: true, values: register_attention }] : [])]) });
}

function drawGivenCharts() {
  const given = (chart, shift = 0) => ({ title: chart.title, xLabel: chart.x_label, x: chart.x,
    linear: true,
    series: chart.series.map(([name, values], i) => ({ name, values, colour: armColour(i + shift) })) });
  facts.charts.forEach((chart, number) => drawChart(find(`chart-${number}`), given(chart)));
  if (!facts.sparsity) return;
  const sparsity = { ...given(facts.sparsity, 5), doubling: true };
  Object.assign(sparsity.series[0], { colour: "var(--soft)", dashed: true });
  drawChart(find("sparsity"), sparsity);
}

// ------------------------------------------------------------------ events

function fillControls() {
  find("strip").append(...facts.images.map(({ name, picture }, number) => {
    const button = document.createElement("button");
    const image = document.createElement("img");
    Object.assign(image, { src: picture, alt: name });
    Object.assign(button, { type: "button", title: name });
    button.dataset.image = number;
    button.append(image);
    button.addEventListener("click", () => change({ image: number }));
    return button;
  }));
  for (let head = 0; head < facts.n_heads; head++) {
    find("head").append(new Option(`head ${head}`, head));
  }
  const names = [...new Set(facts.arms.flatMap((arm) => arm.prefix))];
  find("chips").append(...[...names, "mean"].map((name) => {
    const chip = document.createElement("button");
    Object.assign(chip, { type: "button", className: "chip" });
    chip.textContent = name === "mean" ? "mean over patches" : tokenName(name);
    chip.dataset.query = name;
    chip.addEventListener("click", () => change({ query: name }));
    return chip;
  }));
  const choice = find("right");
  facts.arms.slice(1).forEach((arm, i) => choice.append(new Option(arm.name, i + 1)));
  choice.closest("label").hidden = facts.arms.length < 3;
}

function listen() {
  find("layer").addEventListener("input", (event) => change({ layer: Number(event.target.value) }));
  find("head").addEventListener("change", (event) => change({ head: Number(event.target.value) }));
  find("right").addEventListener("change", (event) => change({ right: Number(event.target.value) }));
  find("log").addEventListener("change", (event) => change({ log: event.target.checked }));
  find("over").addEventListener("change", (event) => change({ over: event.target.checked }));
  for (const field of document.querySelectorAll(".field")) {
    field.addEventListener("click", (event) => change({ query: patchAt(field, event) }));
    field.addEventListener("pointermove", (event) => point(patchAt(field, event)));
    field.addEventListener("pointerleave", () => point(null));
    field.addEventListener("keydown", moveQuery);
  }
  find("theme").addEventListener("click", turnTheme);
  window.addEventListener("resize", () => {
    drawRunCurves();
    drawGivenCharts();
    if (shown) drawImageCurves(shown.sides);
  });
}

function patchAt(field, event) {
  const box = field.getBoundingClientRect();
  const cell = (at, length, count) => Math.min(Math.max(Math.floor((at / length) * count), 0), count - 1);
  return cell(event.clientY - box.top, box.height, base.height) * base.width
    + cell(event.clientX - box.left, box.width, base.width);
}

function point(patch) {
  pointed = patch;
  if (shown) drawReadout();
}

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function moveQuery(event) {
  const move = MOVES[event.key];
  if (!move) return;
  event.preventDefault();
  const middle = [(base.height - 1) >> 1, (base.width - 1) >> 1];
  const [row, column] = typeof state.query !== "number" ? middle
    : [Math.floor(state.query / base.width) + move[0], (state.query % base.width) + move[1]];
  const inside = (at, count) => Math.min(Math.max(at, 0), count - 1);
  pointed = null;
  change({ query: inside(row, base.height) * base.width + inside(column, base.width) });
}

function turnTheme() {
  const root = document.documentElement;
  const dark = getComputedStyle(root).colorScheme === "dark";
  root.dataset.theme = dark ? "light" : "dark";
}

function start() {
  if (typeof DecompressionStream === "undefined") {
    find("problem").hidden = false;
    return;
  }
  fillControls();
  listen();
  drawRunCurves();
  drawGivenCharts();
  change({ image: 0 }).catch((error) => {
    find("problem").hidden = false;
    throw error;
  });
}

start();
