"use strict";
// Zooming: plotly's script is unpacked when it is first asked for. Without this script the page lacks nothing else.
(() => {
  const packed = document.getElementById("plotly-source");
  if (!packed || typeof DecompressionStream === "undefined") return;
  let loading = null;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const opened = new Set();

  function load() {
    loading ??= (async () => {
      const bytes = Uint8Array.from(atob(packed.textContent.trim()), (letter) => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      const script = document.createElement("script");
      script.textContent = await new Response(stream).text();
      document.head.append(script);
    })();
    return loading;
  }

  // "var(--accent)" becomes the theme's colour, "var(--accent)/0.16" the same, that opaque.
  function coloured(value, style) {
    if (typeof value === "string") {
      const found = /^var\((--[\w-]+)\)(?:\/([\d.]+))?$/.exec(value);
      if (!found) return value;
      const colour = style.getPropertyValue(found[1]).trim();
      if (!found[2]) return colour;
      const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
      return `rgba(${parts.join(",")},${found[2]})`;
    }
    if (Array.isArray(value)) return value.map((part) => coloured(part, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, coloured(part, style)]));
    return value;
  }

  function show(figure) {
    const style = getComputedStyle(document.documentElement);
    const described = JSON.parse(figure.querySelector("script").textContent);
    const spec = coloured(described, style);
    if (figure.clientWidth < 480) spec.layout.margin = { l: 52, r: 8, t: 32, b: 48 };
    const config = { responsive: true, displaylogo: false, displayModeBar: true,
      modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] };
    return window.Plotly.react(figure.querySelector(".live"), spec.data, spec.layout, config);
  }

  async function toggle(figure, button) {
    const still = figure.querySelector(".still"), live = figure.querySelector(".live");
    if (live.hidden) {
      button.disabled = true;
      await load();
      live.hidden = false;
      still.hidden = true;
      await show(figure);
      opened.add(figure);
      button.disabled = false;
    } else {
      live.hidden = true;
      still.hidden = false;
      opened.delete(figure);
    }
    button.textContent = live.hidden ? "Zoom" : "Still picture";
    button.setAttribute("aria-pressed", String(!live.hidden));
  }

  for (const figure of document.querySelectorAll("figure.figure")) {
    const live = document.createElement("div");
    live.className = "live";
    live.hidden = true;
    figure.querySelector(".still").after(live);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Zoom";
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-label", `Zoom: ${figure.querySelector(".head").textContent.trim()}`);
    button.addEventListener("click", () => toggle(figure, button));
    figure.querySelector(".head").append(button);
  }
  dark.addEventListener("change", () => opened.forEach((figure) => show(figure)));

  // A link to a run that is folded away opens it.
  const open = () => document.getElementById(location.hash.slice(1))?.closest("details")?.setAttribute("open", "");
  addEventListener("hashchange", open);
  open();
})();
