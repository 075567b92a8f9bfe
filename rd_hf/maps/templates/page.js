"use strict";
// What the page does. All text from the data goes through textContent, never through innerHTML, and plotly is given
// numbers and colours only: its own texts understand markup.
(() => {
  const {
    data, count, numbers, records, residues, columns, levels, name, description, labelOf, labelled, similarity,
    neighbours, agreement, grouped, search,
  } = proteinMap;
  const $ = (id) => document.getElementById(id);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const darkScheme = matchMedia("(prefers-color-scheme: dark)");
  const LISTED = 60; // matches in the list; all are shown in the map

  const state = { level: levels.length - 1, column: 0, hidden: new Set(), chosen: -1, matches: null };
  const shown = { x: levels[state.level].x, y: levels[state.level].y }; // in between while points move
  let groups = [];
  const groupOf = new Uint16Array(count); // place of each protein's group

  function group() {
    groups = grouped(columns[state.column]);
    groups.forEach((one, place) => one.members.forEach((i) => (groupOf[i] = place)));
  }

  // ---- colours and markers

  const colour = (token) => getComputedStyle(document.documentElement).getPropertyValue(token).trim();
  // Most colours are seen on both pages; "ink" and "grey" are those of the scheme.
  const paint = (name) => (name.startsWith("#") ? name : colour(`--${name}`));

  const markOf = (i) => mark(groups[groupOf[i]].marker, groups[groupOf[i]].colour);

  // ---- the plot

  const plot = $("plot");
  const type = hasWebGL() ? "scattergl" : "scatter";
  const size = Math.max(3.5, Math.min(9, 12 - 1.9 * Math.log10(count)));
  const pick = (members, values) => Float32Array.from(members, (i) => values[i]);
  const fade = () => (state.matches ? 0.15 : count > 4000 ? 0.7 : 0.85);

  function traces() {
    return [
      ...groups.map((one, place) => ({
        type, mode: "markers", hoverinfo: "none", showlegend: false,
        x: pick(one.members, shown.x), y: pick(one.members, shown.y), visible: !state.hidden.has(place),
        marker: {
          color: paint(one.colour), symbol: one.marker, opacity: fade(),
          size: one.marker === "circle" ? size : size + 1.5, line: { width: 0 },
        },
      })),
      ...overlays(),
    ];
  }

  // Lines to the neighbours, matches of the search, neighbours, the protein that was chosen.
  function overlays() {
    const near = neighbours(state.chosen, levels[state.level]);
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
      symbol: "circle", size: size + 2.5, color: hit.map((i) => paint(groups[groupOf[i]].colour)), opacity: 1, line: { width: 1, color: ring },
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

  const draw = () => Plotly.react(plot, traces(), { ...layout(), datarevision: performance.now() }, plotOptions);

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
    $("tip").hidden = true;
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
    note();
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
    const button = (one, place) => {
      const made = element("button", { type: "button", title: "Click: show or hide. Double click: this one only." },
        mark(one.marker, one.colour), element("span", { className: "name", textContent: one.name }),
        element("span", { className: "count", textContent: numbers.format(one.members.length) }));
      made.onclick = () => {
        if (!state.hidden.delete(place)) state.hidden.add(place);
        refilter();
      };
      made.ondblclick = () => {
        state.hidden = new Set(groups.keys());
        state.hidden.delete(place);
        refilter();
      };
      made.dataset.place = place;
      return element("li", {}, made);
    };
    const made = groups.map(button);
    // The frequent labels first; what has none, or no colour of its own, last.
    const grey = groups.filter((one) => one.colour === "grey").length;
    $("legend").replaceChildren(...made.slice(grey), ...made.slice(0, grey).reverse());
    pressed();
  }

  function pressed() {
    for (const made of $("legend").querySelectorAll("button")) {
      made.setAttribute("aria-pressed", String(!state.hidden.has(Number(made.dataset.place))));
    }
    $("all").hidden = !state.hidden.size;
  }

  function refilter() {
    pressed();
    const places = [...groups.keys()];
    return Plotly.restyle(plot, { visible: places.map((place) => !state.hidden.has(place)) }, places);
  }

  // ---- search

  function find() {
    const had = state.matches !== null;
    state.matches = search($("search").value);
    const number = state.matches ? state.matches.length : 0;
    $("found").textContent = state.matches
      ? `${numbers.format(number)} of ${numbers.format(count)} proteins${number > LISTED ? `; the first ${LISTED}:` : ""}` : "";
    $("matches").replaceChildren(...(state.matches || []).slice(0, LISTED).map((i) => row(i)));
    return had || state.matches ? draw() : null;
  }

  function row(i, value = "", fresh = false) {
    const more = [labelOf(i, columns[state.column]), description(i)].filter(Boolean).join(" · ");
    const text = element("span", {}, element("span", { className: "name", textContent: name(i) }));
    if (more) text.append(element("span", { className: "more", textContent: more, title: more }));
    const number = element("span", { className: "value", textContent: value });
    if (fresh) number.append(element("span", { className: "new", textContent: "new", title: "not among them a level below" }));
    return element("li", {}, element("button", { type: "button", onclick: () => choose(i) }, markOf(i), text, number));
  }

  // ---- the protein that was chosen

  function describeChosen() {
    const i = state.chosen;
    $("chosen").hidden = i < 0;
    if (i < 0) return;
    $("chosen-id").textContent = name(i);
    $("chosen-about").textContent = [
      ...labelled(i), description(i), residues(i),
      `record ${numbers.format(records[i])}`,
    ].filter(Boolean).join(" · ");
    const level = levels[state.level];
    const near = neighbours(i, level);
    const before = state.level > 0 ? new Set(neighbours(i, levels[state.level - 1])) : null;
    $("near-title").textContent = near.length ? `Nearest neighbours at ${level.name} (cosine similarity)` : "";
    $("near").replaceChildren(...near.map((j, place) =>
      row(j, similarity(level, i, place).toFixed(4), before !== null && !before.has(j))));
  }

  function choose(i) {
    state.chosen = i;
    describeChosen();
    note();
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
    const lines = [...labelled(i), description(i), residues(i)].filter(Boolean);
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

  // What is looked at stands in the address, so that it can be noted, sent along and come back to.
  function note() {
    const kept = { level: levels[state.level].name };
    if (state.column) kept.colour = columns[state.column].name;
    if (state.chosen >= 0) kept.record = records[state.chosen];
    if (state.matches) kept.search = $("search").value;
    if (document.documentElement.dataset.theme) kept.scheme = document.documentElement.dataset.theme;
    try {
      history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
    } catch {
      // Too many in a moment, or a page inside another: the next one will do.
    }
  }

  function recall() {
    const kept = new URLSearchParams(location.hash.slice(1));
    const place = (list, key) => list.findIndex((one) => one.name === kept.get(key));
    const level = place(levels, "level");
    if (level >= 0) state.level = level;
    state.column = Math.max(0, place(columns, "colour"));
    state.chosen = kept.has("record") ? records.indexOf(Number(kept.get("record"))) : -1;
    $("search").value = kept.get("search") || "";
    if (["light", "dark"].includes(kept.get("scheme"))) document.documentElement.dataset.theme = kept.get("scheme");
    shown.x = levels[state.level].x;
    shown.y = levels[state.level].y;
  }

  async function start() {
    if (typeof Plotly === "undefined") throw new Error("plotly.js did not start");
    recall();
    const part = data.total > count ? ` of ${numbers.format(data.total)}, drawn at random` : "";
    $("about").textContent = `${numbers.format(count)} proteins${part} · ${data.model} · ${data.pooling} pooling`;
    $("level").max = levels.length - 1;
    $("level").value = state.level;
    $("level").disabled = levels.length < 2;
    $("level").oninput = () => setLevel(Number($("level").value));
    $("labels").hidden = !columns.length;
    columns.forEach((column, number) => $("column").append(element("option", { value: number, textContent: column.name })));
    $("column").value = state.column;
    $("column").onchange = () => {
      state.column = Number($("column").value);
      state.hidden.clear();
      group();
      legend();
      ladder();
      describeChosen();
      find() || draw();
      note();
    };
    $("all").onclick = () => {
      state.hidden.clear();
      refilter();
    };
    let typed = 0;
    $("search").oninput = () => {
      clearTimeout(typed);
      typed = setTimeout(() => {
        find();
        note();
      }, count > 5000 ? 180 : 60);
    };
    $("close").onclick = () => choose(-1);
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && state.chosen >= 0) choose(-1);
    });
    $("theme").onclick = () => {
      document.documentElement.dataset.theme = scheme() ? "light" : "dark";
      scheme();
      draw();
      note();
    };
    darkScheme.addEventListener("change", () => {
      scheme();
      draw();
    });
    scheme();
    group();
    legend();
    ladder();
    describeChosen();
    await (find() || draw());
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
