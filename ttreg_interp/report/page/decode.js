// Packed maps back to numbers: the inverse of pack.py and codes.py.

const LEVELS = 127;

async function inflate(id) {
  const text = document.getElementById(id).textContent;
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function readFloats(bytes) {
  const count = bytes.length / 4;
  const joined = new Uint8Array(bytes.length);
  for (let part = 0; part < 4; part++) {
    for (let i = 0; i < count; i++) joined[4 * i + part] = bytes[part * count + i];
  }
  return new Float32Array(joined.buffer);
}

// `axes`: {queries, keys, queryStart, keyStart, width}; `first`: {codes, axes} of the first arm.
function readCodes(bytes, planes, axes, first) {
  const { queries, keys } = axes;
  const codes = new Uint8Array(planes * queries * keys);
  for (let plane = 0; plane < planes; plane++) {
    const at = plane * queries * keys;
    const differences = bytes.subarray(planes + at, planes + at + queries * keys);
    const target = codes.subarray(at, at + queries * keys);
    if (bytes[plane] === 1) addFirstArm(differences, target, axes, plane, first);
    else addNeighbours(differences, target, axes);
  }
  return codes;
}

function addNeighbours(differences, target, { queries, keys, queryStart, width }) {
  target.set(differences.subarray(0, keys));
  for (let query = 1; query < queries; query++) {
    const row = query * keys;
    const left = row - keys;
    const above = query >= queryStart + width ? row - width * keys : left;
    for (let key = 0; key < keys; key++) {
      target[row + key] = differences[row + key] + ((target[left + key] + target[above + key]) >> 1);
    }
  }
}

function addFirstArm(differences, target, axes, plane, first) {
  const guide = first.axes;
  const at = plane * guide.queries * guide.keys;
  for (let query = 0; query < axes.queries; query++) {
    const guideQuery = inFirstArm(query, axes.queryStart, guide.queryStart);
    for (let key = 0; key < axes.keys; key++) {
      const guideKey = inFirstArm(key, axes.keyStart, guide.keyStart);
      const known = guideQuery >= 0 && guideKey >= 0;
      const i = query * axes.keys + key;
      target[i] = differences[i] + (known ? first.codes[at + guideQuery * guide.keys + guideKey] : 0);
    }
  }
}

// Where the first arm has the same token; -1 if it has none.
function inFirstArm(index, start, firstStart) {
  if (index < Math.min(start, firstStart)) return index;
  return index >= start ? index - start + firstStart : -1;
}

function attentionTable(nKeys) {
  return Float32Array.from({ length: LEVELS + 1 }, (_, code) =>
    Math.expm1((code / LEVELS) * Math.log1p(nKeys)) / nKeys);
}
