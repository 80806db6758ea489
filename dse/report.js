// Switches views and sorts tables.
(() => {
  // The pair of objectives on show.
  for (const input of document.querySelectorAll("input[name=pair]")) {
    input.addEventListener("change", () => {
      const box = document.getElementById("front-chart");
      box.dataset.figure = input.value;
      page.draw(box);
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

  if (pickers.length) showFaults();
})();
