// Shorthands for the document.

export const $ = id => document.getElementById(id);

export function say(id, text) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
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

// Rows of texts into a table's body.
export function fillRows(table, rows) {
  table.tBodies[0].replaceChildren(...rows.map(cells => element("tr", {}, ...cells.map(cell => element("td", {}, String(cell))))));
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
