(() => {
  "use strict";
  const root = document.documentElement;
  for (const choice of document.querySelectorAll("input[name=scheme]")) {
    choice.addEventListener("change", () => {
      if (choice.value === "system") delete root.dataset.scheme;
      else root.dataset.scheme = choice.value;
    });
  }

  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  const sort = (header) => {
    const table = header.closest("table");
    const column = header.cellIndex;
    const numeric = header.classList.contains("number");
    const now = header.getAttribute("aria-sort");
    const order = now === null ? (numeric ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const turn = order === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => (a === "" || b === "" ? compare(a, b) : turn * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("th button");
    if (button) sort(button.closest("th"));
  });

  // A link into a folded part opens it; a printed page shows all parts.
  const unfold = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  };
  addEventListener("hashchange", unfold);
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
  unfold();
})();
