"use strict";
// The page's behaviour. All text from the data goes through textContent, never through innerHTML, and plotly is given
// numbers and colours only: its own texts understand markup.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const count = data.ids.length;
  const numbers = new Intl.NumberFormat("en");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const darkScheme = matchMedia("(prefers-color-scheme: dark)");
  const LISTED = 60; // matches in the list; all are shown in the map

  function unpack(text, Type) {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Type(bytes.buffer);
  }

  const records = unpack(data.records, Float64Array);
  const lengths = unpack(data.lengths, Uint32Array);
  const columns = data.columns.map((column) => ({ ...column, codes: unpack(column.codes, Int32Array) }));
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

  const state = { level: levels.length - 1, column: 0, hidden: new Set(), chosen: -1, matches: null };
  const shown = { x: levels[state.level].x, y: levels[state.level].y }; // in between while points move
  let groups = [];

  const name = (i) => data.ids[i] || `(no id, record ${numbers.format(records[i])})`;
  const labelOf = (i, column = columns[state.column]) => (column ? column.labels[column.codes[i] - 1] || "" : "");

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // ---- groups: one trace a label, so that the legend can hide it

  const styles = data.colours.length * data.markers.length;
  const colour = (token) => getComputedStyle(document.documentElement).getPropertyValue(token).trim();
  const style = (number) => ({
    colour: data.colours[number % data.colours.length],
    marker: data.markers[Math.floor(number / data.colours.length)],
  });

  function group() {
    const column = columns[state.column];
    const named = column ? Math.min(column.labels.length, styles) : 0;
    groups = [{ name: column ? "no label" : "proteins", marker: "circle", members: [] }];
    if (!column) groups[0].colour = data.colours[0];
    for (let g = 0; g < named; g++) groups.push({ name: column.labels[g], members: [], ...style(g) });
    const rest = column && column.labels.length > styles
      ? { name: `${numbers.format(column.labels.length - styles)} other labels`, marker: "square", members: [] } : null;
    for (let i = 0; i < count; i++) {
      const code = column ? column.codes[i] : 0;
      (code > styles ? rest : groups[code]).members.push(i);
    }
    if (rest) groups.splice(1, 0, rest);
    groups = groups.filter((one) => one.members.length);
  }

  function mark(marker, fill) {
    const shapes = {
      circle: "M6 1a5 5 0 1 0 .01 0z", square: "M2 2h8v8h-8z", diamond: "M6 0l5 6-5 6-5-6z",
      "triangle-up": "M6 1l5.5 9.5h-11z", cross: "M4.4 1h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z",
      x: "M3 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z",
    };
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    const path = document.createElementNS(space, "path");
    svg.setAttribute("viewBox", "0 0 12 12");
    svg.setAttribute("class", "mark");
    svg.setAttribute("aria-hidden", "true");
    path.setAttribute("d", shapes[marker]);
    path.setAttribute("fill", fill || "var(--grey)");
    svg.append(path);
    return svg;
  }
  const markOf = (i) => {
    const found = groups.find((one) => one.name === labelOf(i)) || groups[0];
    return mark(found.marker, found.colour);
  };

  // ---- the plot

  const plot = $("plot");
  const webgl = (() => {
    try {
      return Boolean(document.createElement("canvas").getContext("webgl"));
    } catch {
      return false;
    }
  })();
  const type = webgl ? "scattergl" : "scatter";
  const size = Math.max(3.5, Math.min(9, 12 - 1.9 * Math.log10(count)));
  const pick = (members, values) => Float32Array.from(members, (i) => values[i]);
  const fade = () => (state.matches ? 0.15 : count > 4000 ? 0.7 : 0.85);

  function traces() {
    return [
      ...groups.map((one) => ({
        type, mode: "markers", hoverinfo: "none", showlegend: false,
        x: pick(one.members, shown.x), y: pick(one.members, shown.y), visible: !state.hidden.has(one.name),
        marker: {
          color: one.colour || colour("--grey"), symbol: one.marker, opacity: fade(),
          size: one.marker === "circle" ? size : size + 1.5, line: { width: 0 },
        },
      })),
      ...overlays(),
    ];
  }

  // Lines to the neighbours, matches of the search, neighbours, the protein that was chosen.
  function overlays() {
    const near = neighboursOf(state.chosen);
    const from = state.chosen;
    const line = { x: [], y: [] };
    for (const i of near) {
      line.x.push(shown.x[from], shown.x[i], null);
      line.y.push(shown.y[from], shown.y[i], null);
    }
    const ring = colour("--ring");
    const common = { type, hoverinfo: "skip", showlegend: false };
    const points = (members, marker) => ({
      ...common, mode: "markers", x: pick(members, shown.x), y: pick(members, shown.y), marker,
    });
    const hit = state.matches || [];
    const matched = points(hit, {
      symbol: "circle", size: size + 2.5, color: hit.map((i) => colourOf(i)), opacity: 1, line: { width: 1, color: ring },
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
  const OVERLAYS = 4;

  function colourOf(i) {
    const column = columns[state.column];
    const code = column ? column.codes[i] : 1;
    return code > 0 && code <= styles ? style(code - 1).colour : colour("--grey");
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
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent"), orientation: "v" },
      xaxis: { ...axis }, yaxis: { ...axis, scaleanchor: "x" },
    };
  }

  const options = {
    scrollZoom: true, displaylogo: false, responsive: true, displayModeBar: true, showLink: false,
    doubleClick: "reset",
    modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]],
    toImageButtonOptions: { format: "png", scale: 2, filename: "map" },
  };

  let firstLayout = null;
  function draw() {
    firstLayout ??= layout();
    const now = layout();
    return Plotly.react(plot, traces(), { ...now, datarevision: performance.now() }, options);
  }

  // Only the rings and lines: the points below stay as they are.
  function ring() {
    const made = overlays();
    const places = made.map((_, i) => groups.length + i);
    return Plotly.restyle(plot, {
      x: made.map((one) => one.x), y: made.map((one) => one.y), "marker.color": made.map((one) => one.marker?.color),
    }, places);
  }

  function move() {
    const made = overlays();
    return Plotly.restyle(plot, {
      x: [...groups.map((one) => pick(one.members, shown.x)), ...made.map((one) => one.x)],
      y: [...groups.map((one) => pick(one.members, shown.y)), ...made.map((one) => one.y)],
    }, [...Array(groups.length + OVERLAYS).keys()]);
  }

  // ---- levels

  let moving = 0;
  async function setLevel(number) {
    const target = levels[number];
    const start = { x: shown.x, y: shown.y };
    state.level = number;
    const turn = ++moving;
    $("level").value = number;
    describeLevel();
    describeChosen();
    if (!calm.matches) {
      const began = performance.now();
      const lasts = 450;
      for (;;) {
        const before = performance.now();
        const part = Math.min(1, (before - began) / lasts);
        if (part >= 1) break;
        const eased = part * part * (3 - 2 * part);
        shown.x = start.x.map((value, i) => value + eased * (target.x[i] - value));
        shown.y = start.y.map((value, i) => value + eased * (target.y[i] - value));
        await move();
        await new Promise(requestAnimationFrame);
        if (turn !== moving) return;
        if (performance.now() - before > 150) break; // a slow machine is better off without the way there
      }
    }
    shown.x = target.x;
    shown.y = target.y;
    await move();
    plot.dataset.level = target.name; // what is drawn now
  }

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

  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  function ladder() {
    const column = columns[state.column];
    const agreements = levels.map((level) => agreement(level, column));
    $("ladder").replaceChildren(...levels.map((level, number) => {
      const found = agreements[number];
      const share = found ? found.share : level.explained;
      const bar = element("span", { className: "bar" });
      if (share !== null) bar.append(element("i"));
      if (share !== null) bar.firstChild.style.width = percent(share).replace(" ", "");
      if (found) bar.append(element("u"));
      if (found) bar.lastChild.style.left = percent(found.chance).replace(" ", "");
      const button = element("button", { type: "button", onclick: () => setLevel(number) },
        element("span", { textContent: level.name }), element("span", { className: "width", textContent: `${level.width} dims` }),
        bar, element("span", { className: "share", textContent: share === null ? "" : percent(share) }));
      return element("li", {}, button);
    }));
    const found = agreements.find(Boolean);
    $("ladder-note").textContent = found
      ? `Bars: proteins whose nearest neighbour has the same ${column.name}, of ${numbers.format(found.all)}; ` +
        `the tick is what chance gives, ${percent(found.chance)}.`
      : levels[0].explained === null ? "" : "Bars: share of the level's variance that the two axes hold.";
    describeLevel();
  }

  function describeLevel() {
    const level = levels[state.level];
    $("level-name").textContent = `${level.name}, ${level.width} dimensions`;
    [...$("ladder").querySelectorAll("button")].forEach((button, number) =>
      button.setAttribute("aria-current", String(number === state.level)));
    const held = level.explained === null ? "" : ` The two axes hold ${percent(level.explained)} of the variance.`;
    $("note").textContent = `${data.method}, level ${level.name}.${held}` +
      (levels.length > 1 ? " Each level is turned to fit the one before, and scaled to the same frame." : "");
  }

  // ---- legend

  function legend() {
    const button = (one) => {
      const made = element("button", { type: "button", title: "Click: show or hide. Double click: this one only." },
        mark(one.marker, one.colour), element("span", { className: "name", textContent: one.name }),
        element("span", { className: "count", textContent: numbers.format(one.members.length) }));
      made.setAttribute("aria-pressed", String(!state.hidden.has(one.name)));
      made.onclick = () => {
        if (!state.hidden.delete(one.name)) state.hidden.add(one.name);
        refilter();
      };
      made.ondblclick = () => {
        state.hidden = new Set(groups.map((other) => other.name).filter((other) => other !== one.name));
        refilter();
      };
      return element("li", {}, made);
    };
    // The frequent labels first; what has none, or no colour of its own, last.
    const last = groups.filter((one) => !one.colour);
    $("legend").replaceChildren(...groups.filter((one) => one.colour).map(button), ...last.reverse().map(button));
    $("all").hidden = !state.hidden.size;
  }

  function refilter() {
    // In place: a double click must find the element of its first click.
    const buttons = [...$("legend").querySelectorAll("button")];
    for (const made of buttons) {
      made.setAttribute("aria-pressed", String(!state.hidden.has(made.querySelector(".name").textContent)));
    }
    $("all").hidden = !state.hidden.size;
    return Plotly.restyle(plot, { visible: groups.map((one) => !state.hidden.has(one.name)) }, [...groups.keys()]);
  }

  // ---- search

  const haystack = Array.from({ length: count }, (_, i) =>
    [data.ids[i], data.descriptions ? data.descriptions[i] : "", ...columns.map((column) => labelOf(i, column))]
      .join("\n").toLowerCase());

  function search() {
    const asked = $("search").value.trim().toLowerCase();
    const had = state.matches !== null;
    state.matches = null;
    $("matches").replaceChildren();
    $("found").textContent = "";
    if (asked) {
      state.matches = [];
      for (let i = 0; i < count; i++) if (haystack[i].includes(asked)) state.matches.push(i);
      const number = state.matches.length;
      $("found").textContent = `${numbers.format(number)} of ${numbers.format(count)} proteins` +
        (number > LISTED ? `; the first ${LISTED}:` : "");
      $("matches").replaceChildren(...state.matches.slice(0, LISTED).map((i) => row(i)));
    }
    return had || asked ? draw() : null;
  }

  function row(i, value = "", fresh = false) {
    const label = labelOf(i);
    const more = [label, data.descriptions ? data.descriptions[i] : ""].filter(Boolean).join(" · ");
    const text = element("span", {}, element("span", { className: "name", textContent: name(i) }));
    if (more) text.append(element("span", { className: "more", textContent: more, title: more }));
    const number = element("span", { className: "value", textContent: value });
    if (fresh) number.append(element("span", { className: "new", textContent: "new", title: "not among them a level below" }));
    return element("li", {}, element("button", { type: "button", onclick: () => choose(i) }, markOf(i), text, number));
  }

  // ---- the protein that was chosen

  function neighboursOf(i, level = levels[state.level]) {
    return i < 0 || !level.near ? [] : Array.from(level.near.subarray(i * data.k, (i + 1) * data.k));
  }

  function describeChosen() {
    const i = state.chosen;
    $("chosen").hidden = i < 0;
    if (i < 0) return;
    $("chosen-id").textContent = name(i);
    $("chosen-about").textContent = [
      ...columns.filter((column) => labelOf(i, column)).map((column) => `${column.name}: ${labelOf(i, column)}`),
      data.descriptions ? data.descriptions[i] : "", `${numbers.format(lengths[i])} residues`,
      `record ${numbers.format(records[i])}`,
    ].filter(Boolean).join(" · ");
    const level = levels[state.level];
    const near = neighboursOf(i);
    const before = state.level > 0 ? new Set(neighboursOf(i, levels[state.level - 1])) : null;
    $("near-title").textContent = near.length ? `Nearest neighbours at ${level.name} (cosine similarity)` : "";
    $("near").replaceChildren(...near.map((j, place) =>
      row(j, similarity(level, i, place).toFixed(4), before !== null && !before.has(j))));
  }

  function choose(i) {
    state.chosen = i;
    describeChosen();
    if (i >= 0 && $("panel").scrollHeight > $("panel").clientHeight) $("chosen").scrollIntoView({ block: "nearest" });
    return ring();
  }

  // ---- pointer

  const proteinAt = (point) => {
    const members = point.curveNumber < groups.length ? groups[point.curveNumber].members : state.matches;
    return members[point.pointNumber];
  };

  function tip(event) {
    const i = proteinAt(event.points[0]);
    const lines = columns.filter((column) => labelOf(i, column)).map((column) => `${column.name}: ${labelOf(i, column)}`);
    if (data.descriptions && data.descriptions[i]) lines.push(data.descriptions[i]);
    lines.push(`${numbers.format(lengths[i])} residues`);
    const box = $("tip");
    box.replaceChildren(element("b", { textContent: name(i) }), ...lines.map((line) => element("span", { textContent: line })));
    box.hidden = false;
    const stage = $("stage").getBoundingClientRect();
    const at = { x: event.event.clientX - stage.left, y: event.event.clientY - stage.top };
    box.style.left = `${Math.max(4, at.x + 14 + box.offsetWidth > stage.width ? at.x - 14 - box.offsetWidth : at.x + 14)}px`;
    box.style.top = `${Math.max(4, at.y + 14 + box.offsetHeight > stage.height ? at.y - 14 - box.offsetHeight : at.y + 14)}px`;
  }

  // ---- start

  function scheme() {
    const forced = document.documentElement.dataset.theme;
    const dark = forced ? forced === "dark" : darkScheme.matches;
    $("theme").textContent = dark ? "☀" : "☾";
    return dark;
  }

  async function start() {
    if (typeof Plotly === "undefined") throw new Error("plotly.js did not start");
    const part = data.total > count ? ` of ${numbers.format(data.total)}, drawn at random` : "";
    $("about").textContent = `${numbers.format(count)} proteins${part} · ${data.model} · ${data.pooling} pooling`;
    $("level").max = levels.length - 1;
    $("level").value = state.level;
    $("level").disabled = levels.length < 2;
    $("level").oninput = () => setLevel(Number($("level").value));
    $("labels").hidden = !columns.length;
    columns.forEach((column, number) => $("column").append(element("option", { value: number, textContent: column.name })));
    $("column").onchange = () => {
      state.column = Number($("column").value);
      state.hidden.clear();
      group();
      legend();
      ladder();
      describeChosen();
      search();
      draw();
    };
    $("all").onclick = () => {
      state.hidden.clear();
      refilter();
    };
    let typed = 0;
    $("search").oninput = () => {
      clearTimeout(typed);
      typed = setTimeout(search, count > 5000 ? 180 : 60);
    };
    $("close").onclick = () => choose(-1);
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && state.chosen >= 0) choose(-1);
    });
    $("theme").onclick = () => {
      document.documentElement.dataset.theme = scheme() ? "light" : "dark";
      scheme();
      draw();
    };
    darkScheme.addEventListener("change", () => {
      scheme();
      draw();
    });
    scheme();
    group();
    legend();
    ladder();
    await draw();
    plot.on("plotly_hover", tip);
    plot.on("plotly_unhover", () => ($("tip").hidden = true));
    plot.on("plotly_click", (event) => choose(proteinAt(event.points[0])));
    plot.dataset.level = levels[state.level].name;
  }

  start().catch((error) => {
    $("failure").textContent = `The map cannot be drawn: ${error.message}`;
    $("failure").hidden = false;
    throw error;
  });
})();
