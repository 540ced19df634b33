// Perceptually even colour maps that all common kinds of colour vision can read.

const VIRIDIS = ["440154", "482475", "414487", "355f8d", "2a788e", "21918c", "22a884", "44bf70",
  "7ad151", "bddf26", "fde725"];
const MAGMA = ["000004", "140e36", "3b0f70", "641a80", "8c2981", "b73779", "de4968", "f7705c",
  "fe9f6d", "fecf92", "fcfdbf"];

function ramp(stops) {
  const parts = stops.map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (parts.length - 1);
    const low = Math.min(Math.floor(place), parts.length - 2);
    return parts[low].map((part, i) => part + (place - low) * (parts[low + 1][i] - part));
  };
}

const COLOURS = { norm: ramp(VIRIDIS), attention: ramp(MAGMA), neuron: ramp(VIRIDIS) };

// One scale for several maps: from their least to their largest value.
class Scale {
  constructor(kind, maps, logarithmic, unit = 0) {
    this.colour = COLOURS[kind];
    this.low = Infinity;
    this.high = -Infinity;
    for (const values of maps) {
      for (const value of values) {
        this.low = Math.min(this.low, value);
        this.high = Math.max(this.high, value);
      }
    }
    // Norms: log v. Attention: log(1 + v / uniform), as it is stored.
    this.bend = !logarithmic ? (v) => v
      : unit ? (v) => Math.log1p(v / unit) : (v) => Math.log(Math.max(v, 1e-12));
    this.unbend = !logarithmic ? (t) => t : unit ? (t) => Math.expm1(t) * unit : Math.exp;
  }

  share(value) {
    const [low, high] = [this.bend(this.low), this.bend(this.high)];
    return high > low ? (this.bend(value) - low) / (high - low) : 0;
  }

  at(share) {
    const [low, high] = [this.bend(this.low), this.bend(this.high)];
    return this.unbend(low + share * (high - low));
  }
}

function drawMap(canvas, values, arm, scale) {
  canvas.width = arm.width;
  canvas.height = arm.height;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(arm.width, arm.height);
  values.forEach((value, i) => {
    picture.data.set([...scale.colour(scale.share(value)), 255], 4 * i);
  });
  context.putImageData(picture, 0, 0);
}

function drawScale(element, scale, format) {
  const stops = Array.from({ length: 11 }, (_, i) => `rgb(${scale.colour(i / 10).map(Math.round)})`);
  element.querySelector(".ramp").style.background = `linear-gradient(90deg, ${stops})`;
  element.querySelectorAll(".tick").forEach((tick, i, all) => {
    tick.textContent = format(scale.at(i / (all.length - 1)));
  });
}

function formatNumber(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

function formatShare(value) {
  const percent = 100 * value;
  return percent > 0 && percent < 1e-3 ? "<0.001%" : `${formatNumber(percent)}%`;
}
