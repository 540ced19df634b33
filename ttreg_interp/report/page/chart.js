// Line charts as SVG, drawn at the width they have, so that text keeps its size on a phone.

const SVG = "http://www.w3.org/2000/svg";

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// `chart`: {title, xLabel, x, series: [{name, values, colour, dashed}]}, and as wanted: `format` of
// values, `linear` (never a logarithmic axis), `doubling` (places on a logarithmic axis), `cursor` (a place to mark), `onPick` (called with the place that is clicked).
function drawChart(holder, chart) {
  const width = Math.max(holder.clientWidth, 240);
  const box = { left: 46, right: width - 10, top: 10, bottom: 162, height: 200 };
  const drawing = svg("svg", {
    width, height: box.height, viewBox: `0 0 ${width} ${box.height}`, role: "img",
    "aria-label": `${chart.title}: ${chart.series.map(describeSeries(chart)).join("; ")}`,
  });
  const values = chart.series.flatMap((one) => one.values).filter((v) => v !== null);
  const y = axisY(values, box, chart.linear);
  const places = chart.doubling ? chart.x.map(Math.log2) : chart.x;
  const x = (i) => box.left + (places.length < 2 ? 0.5 : place(places, i)) * (box.right - box.left);
  drawAxes(drawing, chart, box, x, y);
  if (chart.cursor !== undefined) {
    const at = x(chart.cursor);
    drawing.append(svg("line", { class: "cursor", x1: at, x2: at, y1: box.top, y2: box.bottom }));
  }
  for (const one of chart.series) drawSeries(drawing, one, x, y.at);
  if (chart.onPick) {
    drawing.classList.add("pickable");
    drawing.addEventListener("click", (event) => {
      const at = event.clientX - drawing.getBoundingClientRect().left;
      const distances = chart.x.map((_, i) => Math.abs(x(i) - at));
      chart.onPick(distances.indexOf(Math.min(...distances)));
    });
  }
  const caption = document.createElement("figcaption");
  caption.textContent = chart.title;
  holder.replaceChildren(caption, drawing, ...(chart.series.length > 1 ? [legend(chart.series)] : []));
}

function place(xs, i) {
  return (xs[i] - xs[0]) / (xs[xs.length - 1] - xs[0]);
}

function describeSeries(chart) {
  return (one) => {
    const known = one.values.filter((v) => v !== null);
    const format = chart.format || formatNumber;
    return `${one.name} from ${format(Math.min(...known))} to ${format(Math.max(...known))}`;
  };
}

// Logarithmic where positive values span more than a factor of 20, else linear from zero.
function axisY(values, box, linear) {
  const high = Math.max(...values, 1e-12);
  const least = Math.min(...values);
  const logarithmic = !linear && least > 0 && high / least > 20;
  const low = logarithmic ? least / 1.3 : Math.min(0, least);
  const bend = logarithmic ? Math.log : (v) => v;
  const top = logarithmic ? high * 1.15 : high * 1.05;
  const at = (v) => box.bottom
    - ((bend(v) - bend(low)) / (bend(top) - bend(low))) * (box.bottom - box.top);
  return { at, ticks: logarithmic ? decades(low, top) : steps(low, top) };
}

function decades(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const factor of [1, 2, 5]) {
      const tick = factor * 10 ** power;
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  const round = ticks.filter((tick) => Number.isInteger(Math.round(Math.log10(tick) * 1e6) / 1e6));
  return ticks.length > 6 && round.length > 1 ? round : ticks;
}

function steps(low, high) {
  const rough = (high - low) / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(i * step);
  return ticks;
}

function drawAxes(drawing, chart, box, x, y) {
  const format = chart.format || formatNumber;
  for (const tick of y.ticks) {
    const at = y.at(tick);
    drawing.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }));
    drawing.append(svg("text", { x: box.left - 6, y: at + 4, "text-anchor": "end" }, format(tick)));
  }
  const every = Math.ceil(chart.x.length / Math.max(2, Math.floor((box.right - box.left) / 34)));
  chart.x.forEach((value, i) => {
    if (i % every) return;
    drawing.append(svg("text", { x: x(i), y: box.bottom + 16, "text-anchor": "middle" }, formatNumber(value)));
  });
  const middle = (box.left + box.right) / 2;
  drawing.append(svg("text", { x: middle, y: box.height - 4, "text-anchor": "middle" }, chart.xLabel));
}

function drawSeries(drawing, one, x, y) {
  const points = one.values.map((v, i) => (v === null ? null : [x(i), y(v)])).filter(Boolean);
  const style = `stroke:${one.colour}${one.dashed ? ";stroke-dasharray:6 7" : ""}`;
  drawing.append(svg("polyline", { class: "curve", points: points.join(" "), style }));
  if (one.dashed) return;
  for (const [cx, cy] of points) drawing.append(svg("circle", { cx, cy, r: 2.5, style: `fill:${one.colour}` }));
}

function legend(series) {
  const list = document.createElement("ul");
  list.className = "legend";
  for (const one of series) {
    const item = document.createElement("li");
    const swatch = document.createElement("span");
    swatch.className = one.dashed ? "swatch dashed" : "swatch";
    swatch.style.borderColor = one.colour;
    item.append(swatch, one.name);
    list.append(item);
  }
  return list;
}
