"use strict";
// What plotly draws of a view: its groups and which of them are hidden, where the points are, what is found and chosen,
// the level. Plotly is given numbers and colours only: its own texts understand markup.
const drawing = (() => {
  const { data, count, levels, neighbours } = proteinMap;

  const colour = (token) => getComputedStyle(document.documentElement).getPropertyValue(token).trim();
  // Most colours are seen on both pages; "ink" and "grey" are those of the scheme.
  const paint = (name) => (name.startsWith("#") ? name : colour(`--${name}`));

  // ---- a scale of numbers

  const stops = () => data.scales[isDark() ? "dark" : "light"];
  const plotlyScale = () => stops().map((stop, place, all) => [place / (all.length - 1), stop]);

  function scaleColour(column, number) {
    const all = stops();
    const part = (number - column.low) / (column.high - column.low);
    const at = Math.min(1, Math.max(0, part)) * (all.length - 1);
    const place = Math.min(all.length - 2, Math.floor(at));
    const channel = (stop, start) => parseInt(all[stop].slice(start, start + 2), 16);
    const mixed = [1, 3, 5].map((start) =>
      Math.round(channel(place, start) + (at - place) * (channel(place + 1, start) - channel(place, start))));
    return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
  }

  // What stands beside the scale: its ends, said to be passed where the outermost numbers are.
  function scaleEnds(column) {
    const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
    const { low, high, least, most } = column;
    return [
      `${least < low ? "≤ " : ""}${digits.format(low)}`, digits.format((low + high) / 2),
      `${most > high ? "≥ " : ""}${digits.format(high)}`,
    ];
  }

  // The colour of a protein, for marks in lists: the name of one, or six digits.
  function colourOf(view, i) {
    const { colour: own, column } = view.groups[view.groupOf[i]];
    return column ? scaleColour(column, column.numbers[i]) : own;
  }

  // ---- the plot

  const type = hasWebGL() ? "scattergl" : "scatter";
  const size = Math.max(3.5, Math.min(9, 12 - 1.9 * Math.log10(count)));
  const pick = (members, values) => Float32Array.from(members, (i) => values[i]);

  function marker(view, one) {
    const opacity = view.matches ? 0.15 : count > 4000 ? 0.7 : 0.85;
    const made = { symbol: one.marker, opacity, size: one.marker === "circle" ? size : size + 1.5, line: { width: 0 } };
    if (!one.column) return { ...made, color: paint(one.colour) };
    const { numbers, low, high } = one.column;
    return { ...made, color: pick(one.members, numbers), colorscale: plotlyScale(), cmin: low, cmax: high };
  }

  function traces(view) {
    return [
      ...view.groups.map((one, place) => ({
        type, mode: "markers", hoverinfo: "none", showlegend: false,
        x: pick(one.members, view.x), y: pick(one.members, view.y), visible: !view.hidden.has(place),
        marker: marker(view, one),
      })),
      ...overlays(view),
    ];
  }

  // Lines to the neighbours, what was found, neighbours, the protein that was chosen.
  function overlays(view) {
    const near = neighbours(view.chosen, levels[view.level]);
    const from = view.chosen;
    const line = { x: [], y: [] };
    for (const i of near) {
      line.x.push(view.x[from], view.x[i], null);
      line.y.push(view.y[from], view.y[i], null);
    }
    const ring = colour("--ring");
    const common = { type, hoverinfo: "skip", showlegend: false };
    const points = (members, made) => ({
      ...common, mode: "markers", x: pick(members, view.x), y: pick(members, view.y), marker: made,
    });
    const hit = view.matches || [];
    const matched = points(hit, {
      symbol: "circle", size: size + 2.5, color: hit.map((i) => paint(colourOf(view, i))), opacity: 1,
      line: { width: hit.length > 300 ? 0 : 1, color: ring }, // outlines of many would hide their colours
    });
    return [
      { ...common, mode: "lines", ...line, line: { width: 1, color: colour("--quiet") }, opacity: 0.7 },
      { ...matched, hoverinfo: "none" },
      points(near, { symbol: "circle-open", size: size + 6, color: ring, line: { width: 1.6, color: ring } }),
      points(from < 0 ? [] : [from], {
        symbol: "circle-open", size: size + 12, color: colour("--accent"), line: { width: 3, color: colour("--accent") },
      }),
    ];
  }

  function layout() {
    const reach = 1.06 * levels.reduce(
      (most, level) => Math.max(most, level.x.reduce((a, b) => Math.max(a, Math.abs(b)), 0),
        level.y.reduce((a, b) => Math.max(a, Math.abs(b)), 0)), 1e-9);
    const axis = {
      range: [-reach, reach], showticklabels: false, ticks: "", gridcolor: colour("--grid"), zeroline: false,
    };
    return {
      paper_bgcolor: colour("--page"), plot_bgcolor: colour("--page"), margin: { l: 0, r: 0, t: 0, b: 0 },
      dragmode: "pan", hovermode: "closest", hoverdistance: 12, showlegend: false, uirevision: "kept",
      // A rectangle or a lasso has done its work when it is drawn: what it chose is marked as what is found is.
      selections: [], selectionrevision: performance.now(),
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent"), orientation: "v" },
      xaxis: { ...axis }, yaxis: { ...axis, scaleanchor: "x" },
    };
  }

  return { colour, colourOf, scaleColour, stops, scaleEnds, pick, traces, overlays, layout };
})();
