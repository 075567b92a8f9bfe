"use strict";
// What the page does. All text from the data goes through textContent, never through innerHTML, and plotly is given
// numbers and colours only: its own texts understand markup.
(() => {
  const {
    data, count, numbers, records, residues, columns, levels, name, description, labelOf, labelled, similarity,
    neighbours, agreement, correlation, grouped, search,
  } = proteinMap;
  const $ = (id) => document.getElementById(id);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const LISTED = 60; // matches in the list; all are shown in the map

  // What is in sight; x and y are between two levels while points move.
  const view = {
    level: levels.length - 1, column: 0, hidden: new Set(), chosen: -1, matches: null, drawnAround: false,
    x: levels.at(-1).x, y: levels.at(-1).y, groups: [], groupOf: new Uint16Array(count),
  };
  const plot = $("plot");

  function group() {
    view.groups = grouped(columns[view.column]);
    view.groups.forEach((one, place) => one.members.forEach((i) => (view.groupOf[i] = place)));
  }

  const markOf = (i) => mark(view.groups[view.groupOf[i]].marker, drawing.colourOf(view, i));

  // ---- the plot

  const draw = () => Plotly.react(
    plot, drawing.traces(view), { ...drawing.layout(), dragmode: plot.layout?.dragmode || "pan", datarevision: performance.now() }, plotOptions);

  // Only the rings and lines: the points below stay as they are.
  function ring() {
    const made = drawing.overlays(view);
    const places = made.map((_, i) => view.groups.length + i);
    return Plotly.restyle(plot, {
      x: made.map((one) => one.x), y: made.map((one) => one.y), "marker.color": made.map((one) => one.marker?.color),
    }, places);
  }

  function move() {
    const made = drawing.overlays(view);
    return Plotly.restyle(plot, {
      x: [...view.groups.map((one) => drawing.pick(one.members, view.x)), ...made.map((one) => one.x)],
      y: [...view.groups.map((one) => drawing.pick(one.members, view.y)), ...made.map((one) => one.y)],
    }, [...Array(view.groups.length + made.length).keys()]);
  }

  // ---- levels

  let moving = 0;
  async function setLevel(number) {
    const target = levels[number];
    const start = { x: view.x, y: view.y };
    view.level = number;
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
        view.x = start.x.map((value, i) => value + eased * (target.x[i] - value));
        view.y = start.y.map((value, i) => value + eased * (target.y[i] - value));
        await move();
        await new Promise(requestAnimationFrame);
        if (turn !== moving) return;
        if (performance.now() - before > 150) break; // a slow machine is better off without the way there
      }
    }
    view.x = target.x;
    view.y = target.y;
    await move();
    plot.dataset.level = target.name; // what is drawn now
    note();
  }

  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  function ladder() {
    const column = columns[view.column];
    const agreements = levels.map((level) => (column?.scale ? correlation : agreement)(level, column));
    $("ladder").replaceChildren(...levels.map((level, number) => {
      const found = agreements[number];
      const share = found ? found.share : level.explained;
      const said = share === null ? "" : found && column.scale ? share.toFixed(2) : percent(share);
      const bar = element("span", { className: "bar" });
      if (share !== null) bar.append(element("i"));
      if (share !== null) bar.firstChild.style.width = percent(Math.max(0, share)).replace(" ", "");
      if (found) bar.append(element("u"));
      if (found) bar.lastChild.style.left = percent(found.chance).replace(" ", "");
      const button = element("button", { type: "button", onclick: () => setLevel(number) },
        element("span", { textContent: level.name }), element("span", { className: "width", textContent: `${level.width} dims` }),
        bar, element("span", { className: "share", textContent: said }));
      return element("li", {}, button);
    }));
    const found = agreements.find(Boolean);
    $("ladder-note").textContent = found ? aboutBars(found, column)
      : levels[0].explained === null ? "" : "Bars: share of the level's variance that the two axes hold.";
    describeLevel();
  }

  function aboutBars({ all, chance }, column) {
    return column.scale
      ? `Bars: rank correlation of a protein's ${column.name} with that of its nearest neighbour, of ${numbers.format(all)}; chance gives 0.`
      : `Bars: proteins whose nearest neighbour has the same ${column.name}, of ${numbers.format(all)}; ` +
        `the tick is what chance gives, ${percent(chance)}.`;
  }

  function describeLevel() {
    const level = levels[view.level];
    const said = `${level.name}, ${level.width} dimensions`;
    $("level-name").textContent = said;
    $("level").setAttribute("aria-valuetext", said); // the slider's own value is a number that says nothing
    [...$("ladder").querySelectorAll("button")].forEach((button, number) =>
      button.setAttribute("aria-current", String(number === view.level)));
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
        if (!view.hidden.delete(place)) view.hidden.add(place);
        refilter();
      };
      made.ondblclick = () => {
        view.hidden = new Set(view.groups.keys());
        view.hidden.delete(place);
        refilter();
      };
      made.dataset.place = place;
      return element("li", {}, made);
    };
    const made = view.groups.map((one, place) => (one.column ? scaleBar(one.column) : button(one, place)));
    // The frequent labels first; what has none, or no colour of its own, last.
    const grey = view.groups.filter((one) => one.colour === "grey").length;
    $("legend").replaceChildren(...made.slice(grey), ...made.slice(0, grey).reverse());
    const column = columns[view.column];
    $("categories").hidden = !column?.numbers;
    $("as-categories").checked = Boolean(column && !column.scale);
    pressed();
  }

  function scaleBar(column) {
    const bar = element("div", { className: "scale" });
    bar.style.background = `linear-gradient(to right, ${drawing.stops().join(", ")})`;
    const ends = drawing.scaleEnds(column).map((end) => element("span", { textContent: end }));
    const many = numbers.format(view.groups.at(-1).members.length);
    return element("li", {}, bar, element("div", { className: "ends" }, ...ends),
      element("p", { className: "small", textContent: `${many} proteins with a number` }));
  }

  function pressed() {
    for (const made of $("legend").querySelectorAll("button")) {
      made.setAttribute("aria-pressed", String(!view.hidden.has(Number(made.dataset.place))));
    }
    $("all").hidden = !view.hidden.size;
  }

  function refilter() {
    pressed();
    const places = [...view.groups.keys()];
    return Plotly.restyle(plot, { visible: places.map((place) => !view.hidden.has(place)) }, places);
  }

  // ---- search

  function find() {
    const had = view.matches !== null;
    view.matches = search($("search").value);
    view.drawnAround = false;
    listMatches();
    return had || view.matches ? draw() : null;
  }

  function listMatches() {
    const found = view.matches || [];
    const more = `${view.drawnAround ? " chosen in the map" : ""}${found.length > LISTED ? `; the first ${LISTED}:` : ""}`;
    $("found").textContent = view.matches ? `${numbers.format(found.length)} of ${numbers.format(count)} proteins${more}` : "";
    $("found-do").hidden = !found.length;
    $("matches").replaceChildren(...found.slice(0, LISTED).map((i) => row(i)));
  }

  // What a rectangle or a lasso holds is found, as what a search finds is.
  function drawnAround(event) {
    if (!event?.range && !event?.lassoPoints) return; // plotly lets go of its own selection
    const places = event.points.filter((point) => point.curveNumber < view.groups.length);
    view.matches = places.map(proteinAt).sort((a, b) => a - b);
    view.drawnAround = true;
    $("search").value = "";
    listMatches();
    note();
    draw();
  }

  // An id a line; a protein without one has no line.
  function saveIds() {
    const ids = view.matches.map((i) => data.ids[i]).filter(Boolean);
    saveText(ids.map((id) => `${id}\n`).join(""), `${picture.filename(view)}-ids.txt`);
  }

  function letGo() {
    $("search").value = "";
    find();
    note();
  }

  function row(i, value = "", fresh = false) {
    const more = [labelOf(i, columns[view.column]), description(i)].filter(Boolean).join(" · ");
    const text = element("span", {}, element("span", { className: "name", textContent: name(i) }));
    if (more) text.append(element("span", { className: "more", textContent: more, title: more }));
    const number = element("span", { className: "value", textContent: value });
    if (fresh) number.append(element("span", { className: "new", textContent: "new", title: "not among them a level below" }));
    return element("li", {}, element("button", { type: "button", onclick: () => choose(i) }, markOf(i), text, number));
  }

  // ---- the protein that was chosen

  function describeChosen() {
    const i = view.chosen;
    $("chosen").hidden = i < 0;
    if (i < 0) return;
    $("chosen-id").textContent = name(i);
    $("chosen-about").textContent = [
      ...labelled(i), description(i), residues(i),
      `record ${numbers.format(records[i])}`,
    ].filter(Boolean).join(" · ");
    const level = levels[view.level];
    const near = neighbours(i, level);
    const before = view.level > 0 ? new Set(neighbours(i, levels[view.level - 1])) : null;
    $("near-title").textContent = near.length ? `Nearest neighbours at ${level.name} (cosine similarity)` : "";
    $("near").replaceChildren(...near.map((j, place) =>
      row(j, similarity(level, i, place).toFixed(4), before !== null && !before.has(j))));
  }

  function choose(i) {
    view.chosen = i;
    describeChosen();
    note();
    if (i >= 0) $("chosen").scrollIntoView({ block: "nearest" });
    return ring();
  }

  // ---- pointer

  const proteinAt = (point) => {
    const members = point.curveNumber < view.groups.length ? view.groups[point.curveNumber].members : view.matches;
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

  // After a change of the scheme, by the button or the reader's system.
  function repaint() {
    $("theme").textContent = isDark() ? "☀" : "☾";
    legend();
    listMatches();
    describeChosen();
    return draw();
  }

  // After another column, or numbers as categories or not.
  function recolour() {
    view.hidden.clear();
    group();
    legend();
    ladder();
    listMatches();
    describeChosen();
    draw();
    note();
  }

  // What is looked at stands in the address, so that it can be noted, sent along and come back to.
  function note() {
    const kept = { level: levels[view.level].name };
    if (view.column) kept.colour = columns[view.column].name;
    if (view.chosen >= 0) kept.record = records[view.chosen];
    if (columns[view.column]?.numbers) kept.as = columns[view.column].scale ? "scale" : "categories";
    if ($("search").value) kept.search = $("search").value;
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
    if (level >= 0) view.level = level;
    view.column = Math.max(0, place(columns, "colour"));
    const column = columns[view.column];
    if (column?.numbers && ["scale", "categories"].includes(kept.get("as"))) column.scale = kept.get("as") === "scale";
    view.chosen = kept.has("record") ? records.indexOf(Number(kept.get("record"))) : -1;
    $("search").value = kept.get("search") || "";
    if (["light", "dark"].includes(kept.get("scheme"))) document.documentElement.dataset.theme = kept.get("scheme");
    view.x = levels[view.level].x;
    view.y = levels[view.level].y;
  }

  async function start() {
    if (typeof Plotly === "undefined") throw new Error("plotly.js did not start");
    recall();
    const part = data.total > count ? ` of ${numbers.format(data.total)}, drawn at random` : "";
    $("about").textContent = `${numbers.format(count)} proteins${part} · ${data.model} · ${data.pooling} pooling`;
    $("level").max = levels.length - 1;
    $("level").value = view.level;
    $("level").disabled = levels.length < 2;
    $("level").oninput = () => setLevel(Number($("level").value));
    $("labels").hidden = !columns.length;
    columns.forEach((column, number) => $("column").append(element("option", { value: number, textContent: column.name })));
    $("column").value = view.column;
    $("column").onchange = () => {
      view.column = Number($("column").value);
      recolour();
    };
    $("as-categories").onchange = () => {
      columns[view.column].scale = !$("as-categories").checked;
      recolour();
    };
    $("save-ids").onclick = saveIds;
    $("let-go").onclick = letGo;
    for (const format of ["png", "svg"]) $(format).onclick = () => picture.save(view, plot, format);
    $("all").onclick = () => {
      view.hidden.clear();
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
      if (event.key === "Escape" && view.chosen >= 0) choose(-1);
    });
    $("theme").onclick = () => {
      document.documentElement.dataset.theme = isDark() ? "light" : "dark";
      repaint();
      note();
    };
    darkScheme.addEventListener("change", repaint);
    view.matches = search($("search").value);
    group();
    ladder();
    await repaint();
    plot.on("plotly_hover", tip);
    plot.on("plotly_unhover", () => ($("tip").hidden = true));
    plot.on("plotly_selected", drawnAround);
    plot.on("plotly_click", (event) => choose(proteinAt(event.points[0])));
    plot.dataset.level = levels[view.level].name;
  }

  start().catch((error) => {
    $("failure").textContent = `The map cannot be drawn: ${error.message}`;
    $("failure").hidden = false;
    throw error;
  });
})();
