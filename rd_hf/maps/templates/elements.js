"use strict";
// Elements of the page, and how plotly is asked to behave. Text is given as textContent, which no markup in it leaves.
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A marker as the map draws it, for lists and the legend; "ink" and "grey" follow the scheme.
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
  path.setAttribute("fill", fill.startsWith("#") ? fill : `var(--${fill})`);
  svg.append(path);
  return svg;
}

function hasWebGL() {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl"));
  } catch {
    return false;
  }
}

const darkScheme = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const forced = document.documentElement.dataset.theme;
  return forced ? forced === "dark" : darkScheme.matches;
}

// A file for the reader to keep, of text.
function saveText(text, filename) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: filename });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const plotOptions = {
  scrollZoom: true, displaylogo: false, responsive: true, displayModeBar: true, showLink: false,
  doubleClick: "reset",
  modeBarButtons: [["zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};
