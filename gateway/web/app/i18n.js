// Texts of the page in English and Simplified Chinese.
import en from "../texts/en.js";
import zh from "../texts/zh.js";
import { read, write } from "./storage.js";

export const LANGUAGES = { en: "English", "zh-CN": "简体中文" };
const texts = { en: { ...en }, "zh-CN": { ...zh } };
const listeners = new Set();
let language = initial();

function initial() {
  const saved = read("language", "");
  if (Object.hasOwn(LANGUAGES, saved)) return saved;
  return (navigator.languages ?? []).some((each) => each.toLowerCase().startsWith("zh")) ? "zh-CN" : "en";
}

/** Add the texts of another part of the page: `{en: {...}, "zh-CN": {...}}`. */
export function addTexts(more) {
  for (const name of Object.keys(texts)) Object.assign(texts[name], more[name]);
}

export const currentLanguage = () => language;

/** The text `key` with `{name}` replaced from `values`. A text can have forms by number: `{one, other}`, by `values.n`. */
export function t(key, values = {}) {
  let text = texts[language][key] ?? texts.en[key] ?? key;
  if (typeof text === "object") text = text[new Intl.PluralRules(language).select(values.n)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (_, name) => shown(values[name]));
}

function shown(value) {
  return typeof value === "number" ? formatNumber(value) : String(value ?? "");
}

export function formatNumber(value, digits) {
  const fixed = digits === undefined ? {} : { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(language, fixed).format(value);
}

/** Call `listener` after each change of the language. */
export function onLanguage(listener) {
  listeners.add(listener);
}

export function setLanguage(name) {
  language = name;
  write("language", name);
  translate(document.documentElement);
  for (const listener of listeners) listener();
}

/** Fill in the texts of the elements with `data-text`, and the labels of those with `data-label`. */
export function translate(root) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", t(element.dataset.label));
  }
}
