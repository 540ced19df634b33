// Maps of the mapped neurons for the chosen image, side by side under one scale.

const FIRST_NEURONS = 12;

class NeuronPanel {
  constructor(facts, maps) {
    this.facts = facts;
    this.maps = maps;
    this.holder = document.getElementById("neuron-maps");
    this.more = document.getElementById("more-neurons");
    this.shown = FIRST_NEURONS;
    if (!this.holder) return;
    this.more.addEventListener("click", () => {
      this.shown = this.facts.neurons.length;
      this.draw(this.last);
    });
  }

  // `sides`: the decoded maps of the arms on show.
  draw(sides) {
    if (!this.holder) return;
    this.last = sides;
    const shown = this.facts.neurons.slice(0, this.shown);
    this.holder.replaceChildren(...shown.map((neuron, i) => this.card(neuron, i, sides)));
    this.more.hidden = shown.length === this.facts.neurons.length;
    this.more.textContent = `Show all ${this.facts.neurons.length} neurons`;
  }

  card(neuron, index, sides) {
    const values = sides.map((side) => this.maps.neuron(side, index));
    const onPatches = values.map((one, i) => patches(one, sides[i].arm));
    const scale = new Scale("neuron", onPatches, false);
    const card = document.createElement("figure");
    card.className = "neuron";
    const caption = document.createElement("figcaption");
    caption.textContent = `Layer ${neuron.layer}, neuron ${neuron.neuron}`;
    const row = document.createElement("div");
    row.className = "tiles";
    row.append(...sides.map((side, i) => this.tile(side.arm, values[i], onPatches[i], scale)));
    const range = document.createElement("p");
    range.className = "small";
    range.textContent = `Colours from ${formatNumber(scale.low)} to ${formatNumber(scale.high)}`;
    card.append(caption, row, range);
    return card;
  }

  tile(arm, values, onPatches, scale) {
    const tile = document.createElement("div");
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label",
      `${arm.name}: ${formatNumber(Math.min(...onPatches))} to ${formatNumber(Math.max(...onPatches))}`);
    drawMap(canvas, onPatches, arm, scale);
    const note = document.createElement("p");
    note.className = "small";
    const prefix = arm.prefix.map((name, i) => `${tokenName(name)} ${formatNumber(values[i])}`);
    note.textContent = [arm.name, ...prefix].join(" · ");
    tile.append(canvas, note);
    return tile;
  }
}
