"use strict";
// The address says how the table is sorted (#sort=f1-down), so that a sorted page can be linked to.
const table = document.getElementById("table"), body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
const compare = new Intl.Collator(undefined, { numeric: true }).compare;
const value = (row, column) => row.cells[column].dataset.value;

function sortTable() {
  const [, key, way] = /^#sort=(\w+)-(up|down)$/.exec(location.hash) ?? [];
  const column = heads.findIndex(head => head.dataset.key === key);
  if (column < 0) return;
  const sign = way === "down" ? -1 : 1, text = key === "name";
  const rows = [...body.rows].sort((a, b) => {
    const left = value(a, column), right = value(b, column);
    if (left === "" || right === "") return (left === "") - (right === ""); // not defined: last
    return sign * (text ? compare(left, right) : left - right);
  });
  body.append(...rows);
  heads.forEach((head, i) => {
    head.ariaSort = i !== column ? "none" : sign > 0 ? "ascending" : "descending";
    const again = i === column && sign > 0 ? "down" : "up";
    head.firstElementChild.href = `#sort=${head.dataset.key}-${again}`;
  });
}
addEventListener("hashchange", sortTable);
sortTable();
