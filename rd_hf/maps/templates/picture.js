"use strict";
// The picture to keep: what is in sight, with the title, the level and the legend that the page has around it.
const picture = (() => {
  const { data, count, numbers, columns, levels } = proteinMap;
  // More points than this are an image inside an SVG, whose text and legend stay text.
  const MOST_SHAPES = 5000;
  const LONGEST = 48; // characters of a legend's entry

  // Text of the data as plotly's texts must have it: no markup.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text);

  function heading(view) {
    const level = levels[view.level];
    const held = level.explained === null ? "" : `, ${(100 * level.explained).toFixed(1)} % of the variance`;
    const said = `Level ${level.name}, ${level.width} dimensions · ${data.method}${held} · ${numbers.format(count)} proteins · ${data.model}`;
    return `<b>${plain(data.title)}</b><br><span style="font-size:13px">${plain(said)}</span>`;
  }

  // The page's traces, named for a legend: the frequent labels first, grey ones last, as on the page.
  function named(view, traces, asShapes) {
    return traces.map((trace, place) => {
      const group = view.groups[place];
      const made = asShapes ? { ...trace, type: "scatter" } : { ...trace };
      if (!group || !columns.length) return made;
      made.name = `${plain(short(group.name))} (${numbers.format(group.members.length)})`;
      made.legendrank = group.colour === "grey" ? 2000 - place : 1000;
      made.showlegend = !group.column;
      made.marker = { ...trace.marker, opacity: Math.max(trace.marker.opacity, 0.3) };
      if (group.column) {
        const { name, low, high } = group.column;
        const bar = { title: { text: plain(short(name)) }, len: 0.6, thickness: 16, outlinewidth: 0,
          tickvals: [low, (low + high) / 2, high], ticktext: drawing.scaleEnds(group.column).map(plain) };
        Object.assign(made.marker, { showscale: true, colorbar: bar });
      }
      return made;
    });
  }

  // The figure for plotly, of the part of the map that is in sight now.
  function figure(view, plot, format) {
    const { xaxis, yaxis } = plot._fullLayout;
    const base = drawing.layout();
    const shown = view.groups.filter((_, place) => !view.hidden.has(place)).length;
    const font = { color: drawing.colour("--ink"), family: "system-ui, Helvetica, Arial, sans-serif" };
    const column = columns[view.column];
    const aside = !column ? 0 : column.scale ? 130 : 260;
    return {
      data: named(view, drawing.traces(view), format === "svg" && count <= MOST_SHAPES),
      layout: {
        ...base, font, width: plot.clientWidth + aside, height: Math.max(plot.clientHeight + 90, 120 + 19 * shown),
        margin: { l: 16, r: aside || 16, t: 74, b: 16 },
        title: { text: heading(view), x: 0, xref: "paper", xanchor: "left", y: 1, yref: "container", yanchor: "top", pad: { t: 30 } },
        xaxis: { ...base.xaxis, range: [...xaxis.range] }, yaxis: { ...base.yaxis, range: [...yaxis.range] },
        showlegend: Boolean(column),
        legend: { title: { text: column && !column.scale ? plain(short(column.name)) : "" }, itemsizing: "constant",
          ...(column?.scale ? { y: 0, yanchor: "bottom" } : {}) },
      },
    };
  }

  // The name of a file: the title's letters and the level's.
  function filename(view) {
    return `${data.title}-${levels[view.level].name}`.replace(/[^\p{L}\p{N}._-]+/gu, "_").replace(/^[._]+/, "").slice(-100) || "map";
  }

  const save = (view, plot, format) => {
    const made = figure(view, plot, format);
    const { width, height } = made.layout;
    return Plotly.downloadImage(made, { format, width, height, scale: format === "png" ? 2 : 1, filename: filename(view) });
  };

  return { save, filename };
})();
