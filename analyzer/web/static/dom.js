// Shorthands for the document.

export const $ = id => document.getElementById(id);

export function say(id, text) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
}

// A number and, smaller, its unit.
export function sayQuantity(id, [number, unit]) {
  const text = `${number} ${unit}`.trim();
  if ($(id).textContent === text) return;
  $(id).replaceChildren(...(unit ? [`${number} `, element("span", { class: "unit" }, unit)] : [number]));
  $(id).title = text;
}

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// New children where `of`, what they are made of, has changed: what stays can be selected and is not read out again.
const madeOf = new WeakMap();
export function refill(parent, of, make) {
  const now = JSON.stringify(of);
  if (madeOf.get(parent) === now) return;
  madeOf.set(parent, now);
  parent.replaceChildren(...make());
}

// Rows of texts into a table's body.
export function fillRows(table, rows) {
  const body = table.tBodies[0];
  if (body.rows.length !== rows.length) body.replaceChildren(...rows.map(cells => element("tr", {}, ...cells.map(() => element("td")))));
  rows.forEach((cells, n) => cells.forEach((cell, place) => {
    const field = body.rows[n].cells[place], text = String(cell);
    if (field.textContent !== text) field.textContent = text;
  }));
}

// A canvas sized to its box, ready to draw in CSS pixels; null while it is not shown.
export function canvas(id) {
  const target = $(id), ratio = window.devicePixelRatio || 1;
  const width = target.parentElement.clientWidth, height = target.parentElement.clientHeight;
  if (!width || !height) return null;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (target.width !== wide || target.height !== high) [target.width, target.height] = [wide, high];
  const context = target.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "11px system-ui, sans-serif";
  return [context, width, height];
}

// A yes or no of the user's.
export function confirmed(text, yes) {
  const dialog = $("confirm");
  say("confirmText", text);
  say("confirmYes", yes);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise(resolve => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
