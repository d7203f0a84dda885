"use strict";
const table = document.querySelector("table.board");
const bodies = [...table.tBodies];
const heads = [...table.tHead.rows[0].cells];
const form = document.querySelector(".controls");
const choice = form.querySelector("[data-sort]");
const filters = [...form.querySelectorAll("[data-filter]")];
let sorted = heads.findIndex((head) => head.hasAttribute("aria-sort"));
let reversed = false;

// Numbers fall, text rises; what was not measured comes last.
function sort(column, reverse) {
  const value = (body) => body.rows[0].cells[column].dataset.value;
  const numeric = bodies.every((body) => !isNaN(value(body)));
  bodies.sort((first, second) => {
    const [a, b] = [value(first), value(second)];
    if (a === "" || b === "") return (a === "") - (b === "");
    return (numeric ? b - a : a.localeCompare(b)) * (reverse ? -1 : 1);
  });
  table.append(...bodies);
  heads[sorted].removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", numeric === reverse ? "ascending" : "descending");
  [sorted, reversed, choice.value] = [column, reverse, String(column)];
}

function filter() {
  for (const body of bodies)
    body.hidden = filters.some((f) => f.value !== "" && body.dataset[f.dataset.filter] !== f.value);
  const count = bodies.filter((body) => !body.hidden).length;
  form.querySelector("output").textContent = `${count} of ${bodies.length} rows`;
}

heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(column, column === sorted && !reversed));
  head.append(button);
});
choice.addEventListener("change", () => sort(Number(choice.value), false));
for (const select of filters) select.addEventListener("change", filter);
form.hidden = false;
filter();
