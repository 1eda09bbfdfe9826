// Tables that are updated in place. Rule: whatever comes from outside enters the page as
// textContent and as nothing else.

export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

// columns: [{ head, text(row), dot(row)?, bar(row)?, className? }]; `dot`: a colour; `bar`: a share.
export function fill(table, columns, rows, { hidden = 0, none = "nothing yet" } = {}) {
  if (!table.tHead) begin(table, columns);
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((row, index) => {
    const line = body.rows[index] ?? newLine(body, columns);
    columns.forEach((column, number) => setCell(line.cells[number], column, row));
  });
  const note = rows.length === 0 ? none : hidden ? `and ${hidden} more` : "";
  setText(table.tFoot.rows[0].cells[0], note);
  table.tFoot.hidden = note === "";
  table.tHead.hidden = rows.length === 0;
}

function begin(table, columns) {
  const line = table.createTHead().insertRow();
  for (const column of columns) line.append(element("th", column.className ?? "", column.head));
  table.createTBody();
  const cell = table.createTFoot().insertRow().insertCell();
  cell.colSpan = columns.length;
}

function newLine(body, columns) {
  const line = body.insertRow();
  for (const column of columns) {
    const cell = line.insertCell();
    cell.className = column.className ?? "";
    if (column.dot) cell.append(element("span", "dot"));
    cell.append(element("span"));
    if (column.bar) {
      const bar = element("span", column.plain ? "bar plain" : "bar");
      bar.append(element("i"));
      cell.append(bar);
    }
  }
  return line;
}

function setCell(cell, column, row) {
  const text = column.text(row);
  setText(cell.querySelector("span:not(.dot)"), text);
  cell.classList.toggle("zero", text === "0" || text === "–");
  if (column.dot) cell.querySelector(".dot").style.background = column.dot(row);
  if (column.title) cell.title = column.title(row);
  if (column.bar) cell.querySelector("i").style.width = `${100 * Math.min(1, column.bar(row) ?? 0)}%`;
}

// Children of `target`, one for each item, made by `make` and kept up by `update`.
export function list(target, items, make, update) {
  while (target.children.length > items.length) target.lastChild.remove();
  items.forEach((item, index) => {
    if (!target.children[index]) target.append(make(item));
    update(target.children[index], item);
  });
}
