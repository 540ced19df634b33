// The maps of one run: norms, attention rows and neurons by arm, image and layer.

class Maps {
  constructor(facts) {
    this.facts = facts;
    this.table = attentionTable(facts.attention.n_keys);
    this.loaded = new Map();
  }

  // All maps of one image under one arm; the latest few images stay decoded.
  load(arm, image) {
    const name = `${arm}/${image}`;
    if (!this.loaded.has(name)) {
      const oldest = this.loaded.keys().next().value;
      if (this.loaded.size >= 6 * this.facts.arms.length) this.loaded.delete(oldest);
      this.loaded.set(name, this.decode(arm, image));
    }
    return this.loaded.get(name);
  }

  async decode(arm, image) {
    const id = (kind) => `map-${arm}-${image}-${kind}`;
    const maps = { arm: this.facts.arms[arm], rows: {} };
    maps.norms = readFloats(await inflate(id("norms")));
    if (this.facts.neurons.length) maps.neurons = readFloats(await inflate(id("neurons")));
    const first = arm === 0 ? null : await this.load(0, image);
    for (const [kind, sides] of Object.entries(maps.arm.rows)) {
      const axes = this.axes(maps.arm, sides);
      const planes = this.facts.n_layers * (sides.by_head ? this.facts.n_heads : 1);
      const bytes = await inflate(id(kind));
      maps.rows[kind] = kind === "exact" ? { axes, shares: readFloats(bytes) }
        : { axes, codes: readCodes(bytes, planes, axes, first && first.rows[kind]) };
    }
    return maps;
  }

  axes(arm, sides) {
    const blocks = (side) => Math.ceil(arm.height / side) * Math.ceil(arm.width / side);
    const start = arm.prefix.length;
    const elsewhere = this.facts.attention.elsewhere ? 1 : 0;
    return {
      queries: start + blocks(sides.query), keys: elsewhere + start + blocks(sides.key),
      queryStart: start, keyStart: elsewhere + start, elsewhere,
      width: Math.ceil(arm.width / sides.query), querySide: sides.query, keySide: sides.key,
    };
  }

  // One value a token: prefix tokens first, then patches in raster order.
  norms(maps, layer) {
    const tokens = maps.arm.prefix.length + maps.arm.height * maps.arm.width;
    return maps.norms.subarray(layer * tokens, (layer + 1) * tokens);
  }

  neuron(maps, index) {
    const tokens = maps.arm.prefix.length + maps.arm.height * maps.arm.width;
    return maps.neurons.subarray(index * tokens, (index + 1) * tokens);
  }

  // Attention of a query, one value a token, and what was averaged to get it; null where the arm
  // has no such token. `head` is -1 for the mean. `query` is a patch number, a prefix token's
  // name, or "mean" for the mean over patches.
  attention(maps, layer, head, query) {
    const kind = head >= 0 ? "heads" : typeof query === "number" ? "tokens" : "exact";
    const { axes, codes, shares } = maps.rows[kind];
    const share = codes ? (i) => this.table[codes[i]] : (i) => shares[i];
    const weights = this.queryWeights(maps.arm, axes, query);
    if (weights === null) return null;
    const plane = head >= 0 ? layer * this.facts.n_heads + head : layer;
    const sums = new Float32Array(axes.keys);
    for (const [row, weight] of weights) {
      const at = (plane * axes.queries + row) * axes.keys;
      for (let key = 0; key < axes.keys; key++) sums[key] += weight * share(at + key);
    }
    return {
      values: spread(sums, axes, maps.arm),
      elsewhere: axes.elsewhere ? sums[0] : 0,
      querySide: typeof query === "number" ? axes.querySide : 1,
      keySide: axes.keySide,
    };
  }

  // Rows of the stored set, with weights that add up to one.
  queryWeights(arm, axes, query) {
    const { height, width } = arm;
    const side = axes.querySide;
    if (typeof query === "number") {
      const row = Math.floor(Math.floor(query / width) / side);
      const column = Math.floor((query % width) / side);
      return [[axes.queryStart + row * axes.width + column, 1]];
    }
    if (query !== "mean") {
      const row = arm.prefix.indexOf(query);
      return row < 0 ? null : [[row, 1]];
    }
    return Array.from({ length: axes.queries - axes.queryStart }, (_, block) => {
      const [row, column] = [Math.floor(block / axes.width), block % axes.width];
      const patches = Math.min(side, height - row * side) * Math.min(side, width - column * side);
      return [axes.queryStart + block, patches / (height * width)];
    });
  }
}

// A block's sum shared evenly by its patches.
function spread(sums, axes, arm) {
  const { height, width } = arm;
  const side = axes.keySide;
  const start = arm.prefix.length;
  const blockColumns = Math.ceil(width / side);
  const values = new Float32Array(start + height * width);
  values.set(sums.subarray(axes.elsewhere, axes.keyStart));
  for (let patch = 0; patch < height * width; patch++) {
    const row = Math.floor(Math.floor(patch / width) / side);
    const column = Math.floor((patch % width) / side);
    const patches = Math.min(side, height - row * side) * Math.min(side, width - column * side);
    values[start + patch] = sums[axes.keyStart + row * blockColumns + column] / patches;
  }
  return values;
}

// Values of the patches alone.
function patches(values, arm) {
  return values.subarray(arm.prefix.length);
}
