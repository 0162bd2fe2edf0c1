// Light, dark, or as the system has it.
import { read, write } from "./storage.js";

export const THEMES = ["system", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");
const listeners = new Set();

export function theme() {
  const saved = read("theme", "");
  return THEMES.includes(saved) ? saved : "system";
}

/** Call `listener` after each change of the colours, also a change of the system's. */
export function onTheme(listener) {
  listeners.add(listener);
}

export function setTheme(name) {
  write("theme", name);
  apply();
}

export function apply() {
  const name = theme();
  document.documentElement.dataset.theme = name === "system" ? (system.matches ? "dark" : "light") : name;
  for (const listener of listeners) listener();
}

system.addEventListener("change", apply);
