// Code blocks: a head with the language and a button that copies, and colours.
import { h } from "../app/dom.js";
import { t } from "../app/i18n.js";
import { copyButton } from "./copy.js";
import { sanitisedCode } from "./sanitise.js";

const LONGEST = 60_000; // characters that are coloured

/** Give each `pre` of `element` its head. `isFinal`: the answer adds nothing to it, so it is coloured too. */
export function dressCode(element, isFinal) {
  for (const pre of element.querySelectorAll("pre")) {
    const code = pre.querySelector("code") ?? pre;
    const language = code.dataset.language ?? "";
    const text = code.textContent;
    pre.tabIndex = 0; // long lines scroll
    pre.setAttribute("aria-label", t("code.label", { language: language || t("code.text") }));
    pre.setAttribute("role", "region");
    const head = h("div", { class: "code-head" }, h("span", {}, language || t("code.text")), copyButton(() => text));
    const frame = h("div", { class: "code" }, head);
    pre.replaceWith(frame);
    frame.append(pre);
    if (isFinal && text.length <= LONGEST) colour(code, language, text);
  }
}

async function colour(code, language, text) {
  const { default: highlighter } = await import("../vendor/highlight/highlight.js");
  if (!highlighter.getLanguage(language)) return;
  const { value } = highlighter.highlight(text, { language, ignoreIllegals: true });
  code.replaceChildren(sanitisedCode(value));
}
