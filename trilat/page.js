"use strict";
// Draws the page's figures in its colours, each when it comes near the window.
const page = (() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const touch = matchMedia("(hover: none)").matches;
  const narrow = () => document.documentElement.clientWidth < 600;

  const hasWebGL = () => {
    try {
      const canvas = document.createElement("canvas");
      return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
    } catch (error) {
      return false;
    }
  };

  function themed(layout) {
    const text = style("--text"), muted = style("--muted"), line = style("--line"), panel = style("--panel");
    const axis = (a, inSpace) => ({
      gridcolor: line, zerolinecolor: a.zeroline ? muted : line, linecolor: line, tickcolor: line, automargin: true,
      ...(inSpace ? { showbackground: false } : { fixedrange: touch }),
      ...a,
      title: { ...a.title, font: { size: 12, color: muted }, standoff: 8 },
      tickfont: { size: 11, color: muted },
    });
    const full = {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: text },
      separators: ".\u202f",
      margin: { l: 8, r: 12, t: 8, b: 8, pad: 2, ...layout.margin },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 12, color: text }, ...layout.legend },
      hoverlabel: { bgcolor: panel, bordercolor: line, align: "left", font: { size: narrow() ? 10 : 12, color: text }, namelength: -1 },
      hovermode: "closest",
      dragmode: layout.scene ? "orbit" : touch ? false : "zoom",
    };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) full[key] = axis(layout[key], false);
    }
    if (layout.scene) {
      full.scene = { ...layout.scene };
      if (narrow()) {
        const { eye, center } = layout.scene.camera;
        full.scene.camera = { eye: { x: 1.4 * eye.x, y: 1.4 * eye.y, z: 1.4 * eye.z }, center };
      }
      for (const key of ["xaxis", "yaxis", "zaxis"]) full.scene[key] = axis(layout.scene[key], true);
    }
    return full;
  }

  function draw(box) {
    const figure = figures[box.dataset.figure];
    if (!figure) return;
    if (figure.layout.scene && !hasWebGL()) {
      box.hidden = true;
      const words = box.parentElement.querySelector(".no-webgl");
      if (words) words.hidden = false;
      return;
    }
    const data = structuredClone(figure.data);
    for (const trace of data) {
      const bar = trace.colorbar ?? trace.marker?.colorbar;
      if (bar) {
        bar.tickfont = { color: style("--muted"), size: 12 };
        bar.title.font = { color: style("--muted"), size: 12 };
        bar.outlinewidth = 0;
      }
    }
    Plotly.react(box, data, themed(figure.layout), {
      responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
      toImageButtonOptions: { filename: `trilat-${box.dataset.figure}`, scale: 2 },
    });
    box.dataset.drawn = "yes";
  }

  const visible = (box) => !box.closest("[hidden]");
  const boxes = [...document.querySelectorAll(".chart")];
  const redraw = () => boxes.filter((box) => box.dataset.drawn && visible(box)).forEach(draw);
  const drawRest = () => boxes.filter((box) => !box.dataset.drawn && visible(box)).forEach(draw);
  // A chart is drawn when it comes near the window: a phone need not draw all of them at once.
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !target.dataset.drawn) draw(target);
    }
  }, { rootMargin: "600px 0px" });
  for (const box of boxes) {
    const figure = figures[box.dataset.figure];
    if (figure) box.style.height = `${figure.layout.height}px`;
    watch.observe(box);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", drawRest);
  return { draw };
})();
