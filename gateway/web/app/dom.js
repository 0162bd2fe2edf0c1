// Elements are made here. Text is always set as text, never as HTML.
import { ICONS } from "./icons.js";

/**
 * A new element. `properties`: `class`, `on` (event -> listener), `data` (dataset), attributes by name; `true` sets an empty
 * attribute, `false`, `null` and `undefined` set none.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A picture of 20 pixels that screen readers skip. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with a picture and a label for screen readers, which is also its tooltip. */
export function iconButton(name, label, onClick, properties = {}) {
  return h(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, on: { click: onClick }, ...properties },
    icon(name),
  );
}

export function textButton(text, onClick, properties = {}) {
  return h("button", { type: "button", class: "button", on: { click: onClick }, ...properties }, text);
}
