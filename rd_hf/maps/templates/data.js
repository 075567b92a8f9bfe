"use strict";
// What the page knows, unpacked, and what can be told from it without drawing anything; page.py's page_data() packs it.
const proteinMap = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const count = data.ids.length;
  const numbers = new Intl.NumberFormat("en");

  function unpack(text, Type) {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Type(bytes.buffer);
  }

  // What a column of numbers is drawn by: their range without the outermost hundredth at either end, and their ranks,
  // equal numbers sharing the middle one.
  function measured(numbers) {
    const order = [...numbers.keys()].filter((i) => !Number.isNaN(numbers[i])).sort((a, b) => numbers[a] - numbers[b]);
    const ranks = new Float64Array(count);
    for (let start = 0, end = 0; start < order.length; start = end) {
      while (end < order.length && numbers[order[end]] === numbers[order[start]]) end++;
      for (let place = start; place < end; place++) ranks[order[place]] = (start + end - 1) / 2;
    }
    const at = (share) => numbers[order[Math.round(share * (order.length - 1))]];
    const [least, most] = [at(0), at(1)];
    const cut = at(0.01) < at(0.99);
    return { numbers, ranks, least, most, low: cut ? at(0.01) : least, high: cut ? at(0.99) : most };
  }

  const records = unpack(data.records, Float64Array);
  const lengths = unpack(data.lengths, Uint32Array);
  const columns = data.columns.map((column) => ({
    ...column, codes: unpack(column.codes, Int32Array), ...(column.numbers && measured(unpack(column.numbers, Float64Array))),
  }));
  const levels = data.levels.map((level) => {
    const steps = unpack(level.points, Int16Array);
    const x = new Float32Array(count);
    const y = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      x[i] = steps[2 * i] * data.step;
      y[i] = steps[2 * i + 1] * data.step;
    }
    const near = level.neighbours && unpack(level.neighbours, count <= 65536 ? Uint16Array : Uint32Array);
    return { ...level, x, y, near, similar: level.similarities && unpack(level.similarities, Uint16Array) };
  });
  const similarity = (level, i, place) => level.similar[i * data.k + place] / 32767.5 - 1;

  const name = (i) => data.ids[i] || `(no id, record ${numbers.format(records[i])})`;
  const description = (i) => (data.descriptions ? data.descriptions[i] : "");
  const labelOf = (i, column) => (column ? column.labels[column.codes[i] - 1] || "" : "");
  const neighbours = (i, level) =>
    i < 0 || !level.near ? [] : Array.from(level.near.subarray(i * data.k, (i + 1) * data.k));

  // "column: label" for each column that has one.
  const labelled = (i) =>
    columns.filter((column) => labelOf(i, column)).map((column) => `${column.name}: ${labelOf(i, column)}`);

  // How often a protein's nearest neighbour has its label, and how often two proteins drawn at random have the same.
  function agreement(level, column) {
    if (!level.near || !column) return null;
    let same = 0;
    let all = 0;
    const counts = new Map();
    for (let i = 0; i < count; i++) {
      const code = column.codes[i];
      if (code) counts.set(code, (counts.get(code) || 0) + 1);
      const other = column.codes[level.near[i * data.k]];
      if (code && other) {
        all++;
        if (code === other) same++;
      }
    }
    let labelled = 0;
    let pairs = 0;
    for (const number of counts.values()) {
      labelled += number;
      pairs += number * (number - 1);
    }
    return all ? { share: same / all, all, chance: labelled > 1 ? pairs / (labelled * (labelled - 1)) : 0 } : null;
  }

  // Spearman's correlation of a protein's number with that of its nearest neighbour; by chance there is none.
  function correlation(level, column) {
    if (!level.near) return null;
    const sums = [0, 0, 0, 0, 0];
    let all = 0;
    for (let i = 0; i < count; i++) {
      const other = level.near[i * data.k];
      if (Number.isNaN(column.numbers[i] + column.numbers[other])) continue;
      const [a, b] = [column.ranks[i], column.ranks[other]];
      all++;
      [a, b, a * a, b * b, a * b].forEach((value, place) => (sums[place] += value));
    }
    const [a, b, aa, bb, ab] = sums.map((sum) => sum / all);
    const spread = Math.sqrt((aa - a * a) * (bb - b * b));
    return all > 2 && spread > 0 ? { share: (ab - a * b) / spread, all, chance: 0 } : null;
  }

  // Proteins by label, so that each label has a colour and a marker: those without one first, since what is drawn first
  // lies below; then the labels that are left when the styles are used up; then the most frequent ones and so on.
  const styles = data.colours.length * data.markers.length;
  const style = (number) => ({
    colour: data.colours[number % data.colours.length],
    marker: data.markers[Math.floor(number / data.colours.length)],
  });

  function grouped(column) {
    if (!column) return [{ name: "proteins", members: [...Array(count).keys()], ...style(0) }];
    if (column.scale) {
      const made = [
        { name: "no number", colour: "grey", marker: "circle", members: [] },
        { name: column.name, colour: "grey", marker: "circle", members: [], column },
      ];
      column.numbers.forEach((number, i) => made[Number.isNaN(number) ? 0 : 1].members.push(i));
      return made.filter((one) => one.members.length);
    }
    const named = Math.min(column.labels.length, styles);
    const made = [{ name: "no label", colour: "grey", marker: "circle", members: [] }];
    for (let g = 0; g < named; g++) made.push({ name: column.labels[g], members: [], ...style(g) });
    const others = `${numbers.format(column.labels.length - styles)} other labels`;
    const rest = { name: others, colour: "grey", marker: "square", members: [] };
    column.codes.forEach((code, i) => (code > styles ? rest : made[code]).members.push(i));
    made.splice(1, 0, rest);
    return made.filter((one) => one.members.length);
  }

  // Nothing where the folder, converted from stored embeddings, does not know it.
  const residues = (i) => (lengths[i] ? `${numbers.format(lengths[i])} residues` : "");

  const haystack = Array.from({ length: count }, (_, i) =>
    [data.ids[i], description(i), ...columns.map((column) => labelOf(i, column))].join("\n").toLowerCase());

  function search(text) {
    const asked = text.trim().toLowerCase();
    if (!asked) return null;
    const found = [];
    for (let i = 0; i < count; i++) if (haystack[i].includes(asked)) found.push(i);
    return found;
  }

  return {
    data, count, numbers, records, residues, columns, levels, name, description, labelOf, labelled, similarity,
    neighbours, agreement, correlation, grouped, search,
  };
})();
