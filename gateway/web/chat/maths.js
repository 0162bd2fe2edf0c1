// TeX in answers: finds it in Markdown, and draws it as MathML, which the browser shows without extra fonts.
import { library } from "../app/scripts.js";
import { escaped } from "./sanitise.js";

const MAX_SIZE = [40, 40]; // em of a size that the formula sets itself
const DISPLAY = [/^\$\$([\s\S]{1,4000}?)\$\$/, /^\\\[([\s\S]{1,4000}?)\\\]/];
// A dollar sign begins a formula only without a space after it, and without a digit after its end: "$5 and $6" is money.
const INLINE = [/^\$(?!\s)((?:\\.|[^$\\\n]){1,1000}?)(?<!\s)\$(?!\d)/, /^\\\(([\s\S]{1,4000}?)\\\)/];

function found(source, patterns) {
  for (const pattern of patterns) {
    const match = pattern.exec(source);
    if (match && match[1].trim()) return { raw: match[0], tex: match[1].trim() };
  }
  return undefined;
}

function extension(name, level, patterns, hint, isDisplay) {
  return {
    name,
    level,
    start: (source) => hint.exec(source)?.index,
    tokenizer(source) {
      const match = found(source, patterns);
      return match && { type: name, ...match };
    },
    renderer: ({ tex, raw }) =>
      `<span data-tex="${escaped(tex)}" data-display="${isDisplay ? "yes" : "no"}">${escaped(raw)}</span>`,
  };
}

/** Extensions of marked. They leave elements with `data-tex`, which `drawMaths` replaces. */
export const MATHS = [
  extension("displayMaths", "block", DISPLAY, /\$\$|\\\[/, true),
  extension("innerDisplayMaths", "inline", DISPLAY, /\$\$|\\\[/, true),
  extension("inlineMaths", "inline", INLINE, /\$|\\\(/, false),
];

/** Draw the formulas of `element`. A formula that is not valid stays as text. */
export async function drawMaths(element) {
  const formulas = element.querySelectorAll("[data-tex]");
  if (!formulas.length) return;
  const temml = await library("/web/vendor/temml/temml.js", "temml").catch(() => null);
  for (const formula of temml ? formulas : []) draw(temml, formula);
}

function draw(temml, formula) {
  const displayMode = formula.dataset.display === "yes";
  const drawn = document.createElement("span");
  drawn.className = displayMode ? "maths display" : "maths";
  if (displayMode) drawn.tabIndex = 0; // a wide formula scrolls
  try {
    temml.render(formula.dataset.tex, drawn, { displayMode, throwOnError: true, trust: false, annotate: false, maxSize: MAX_SIZE });
    formula.replaceWith(drawn);
  } catch {
    formula.removeAttribute("data-tex");
  }
}
