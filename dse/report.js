"use strict";
// Draws the figures that dse/charts.py made, in the page's colours; sorts tables; switches views.
(() => {
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
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12, color: text }, ...layout.legend },
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
      document.getElementById("no-webgl").hidden = false;
      return;
    }
    const data = structuredClone(figure.data);
    for (const trace of data) {
      const bar = trace.marker && trace.marker.colorbar;
      if (bar) {
        bar.tickfont = { color: style("--muted"), size: 11 };
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

  // The pair of objectives on show.
  for (const input of document.querySelectorAll("input[name=pair]")) {
    input.addEventListener("change", () => {
      const box = document.getElementById("front-chart");
      box.dataset.figure = input.value;
      draw(box);
    });
  }

  // The design and the number of flips whose fault outcomes are on show.
  const pickers = document.querySelectorAll("select[data-picks]");
  const showFaults = () => {
    const wanted = [...pickers].map((picker) => [picker.dataset.picks, picker.value]);
    for (const block of document.querySelectorAll(".outcomes")) {
      block.hidden = !wanted.every(([key, value]) => block.dataset[key] === value);
    }
    const none = document.getElementById("no-campaign");
    if (none) none.hidden = Boolean(document.querySelector(".outcomes:not([hidden])"));
  };
  for (const picker of pickers) picker.addEventListener("change", showFaults);

  // A click on a heading sorts by data-v of the cells; again: the other way. Missing values stay last.
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const button = heading.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const rising = heading.getAttribute("aria-sort") !== "ascending";
        for (const other of headings) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
        heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const value = (row) => row.cells[column].dataset.v ?? "";
        const compare = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const order = Number.isNaN(Number(x)) ? x.localeCompare(y) : Number(x) - Number(y);
          return rising ? order : -order;
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
      });
    });
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", drawRest);
  if (pickers.length) showFaults();
})();
