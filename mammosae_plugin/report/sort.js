// Sorts the tables of class "sortable" by their columns; without it they stand in the order that their captions state.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, at) => row.cells[at].dataset.value ?? "";
  heads.forEach((head, at) => {
    const numeric = head.classList.contains("number");
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    // The first click gives the largest number, or the first word; the second turns it; the third is the stated order.
    const orders = numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    button.addEventListener("click", () => {
      const order = orders[(orders.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
      const sign = order === "descending" ? -1 : 1;
      const compare = (one, other) => {
        const [a, b] = [value(one, at), value(other, at)];
        if (a === "" || b === "") return (a === "") - (b === "");  // what is missing comes last in either order
        return sign * (numeric ? a - b : a < b ? -1 : a > b ? 1 : 0);
      };
      body.append(...(order === "none" ? rows : [...rows].sort(compare)));
      table.classList.toggle("sorted", order !== "none");
    });
  });
}
