// Draws the page's figures in the colours of its theme, each when it comes near the window.
(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const chosen = {};
  const drawn = new Set();
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // "@accent" stands for the CSS variable --accent.
  function themed(value, style) {
    if (typeof value === "string" && value.startsWith("@")) return style.getPropertyValue("--" + value.slice(1)).trim();
    if (Array.isArray(value)) return value.map((item) => themed(item, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
    return value;
  }

  function draw(id) {
    const figure = themed(figures[id], getComputedStyle(document.documentElement));
    const axis = chosen[id];
    if (axis) {
      figure.alternative[axis].forEach((x, trace) => (figure.data[trace].x = x));
      figure.layout.xaxis = { ...figure.layout.xaxis, tickformat: null, dtick: null };
      figure.layout.xaxis.title.text = figure.titles[axis];
    }
    Plotly.react(id, figure.data, figure.layout, { displayModeBar: false, responsive: true, scrollZoom: false });
    drawn.add(id);
  }

  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        near.unobserve(entry.target);
        draw(entry.target.id);
      }
    },
    { rootMargin: "800px" },
  );
  for (const id of Object.keys(figures)) near.observe(document.getElementById(id));

  for (const choice of document.querySelectorAll(".choice")) {
    choice.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      for (const other of choice.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      chosen[choice.dataset.for] = button.dataset.axis;
      draw(choice.dataset.for);
    });
  }
  dark.addEventListener("change", () => drawn.forEach(draw));
  addEventListener("beforeprint", () => Object.keys(figures).forEach(draw));
})();
