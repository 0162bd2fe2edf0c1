// Shows Markdown that grows. Only blocks that changed are made again: of a long answer, the last one.
import { announce } from "../app/announce.js";
import { Marked } from "../vendor/marked/marked.js";
import { dressCode } from "./code.js";
import { drawMaths, MATHS } from "./maths.js";
import { escaped, sanitised } from "./sanitise.js";

const LONGEST = 200_000; // characters

// HTML elements that are left in Markdown, without attributes. Other HTML is shown as text.
const PLAIN_TAGS = /&lt;(\/?(?:b|br|em|hr|i|kbd|mark|s|small|strong|sub|sup|u))\s*\/?>/gi;

const parser = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    code({ text, lang }) {
      const language = (lang ?? "").trim().split(/\s/)[0].toLowerCase();
      return `<pre><code data-language="${escaped(language)}">${escaped(text)}</code></pre>`;
    },
    html({ text, block }) {
      const shown = escaped(text).replace(PLAIN_TAGS, "<$1>");
      return block ? `<p>${shown}</p>` : shown;
    },
    // No request leaves the machine: a picture is a link.
    image({ href, text }) {
      return `<a href="${escaped(href)}">${escaped(text || href)}</a>`;
    },
  },
});
parser.use({ extensions: MATHS });

/** The blocks of a text. Text that is too long or too deep for the parser is one block without Markdown. */
function tokensOf(text) {
  try {
    if (text.length <= LONGEST) return parser.lexer(text).filter(({ type }) => type !== "space" && type !== "def");
  } catch {
    // more levels than the stack
  }
  return [{ type: "plain", raw: text }];
}

function htmlOf(token) {
  try {
    if (token.type !== "plain") return parser.parser([token]);
  } catch {
    // as above
  }
  return escaped(token.raw).replaceAll("\n", "<br>");
}

/** Markdown in `element`. */
export class MarkdownView {
  #raws = [];
  #finals = 0;

  constructor(element) {
    this.element = element;
  }

  /** Show `text`. `isFinal`: nothing will be added. `isRead`: screen readers read each block when it is complete. */
  update(text, { isFinal = true, isRead = false } = {}) {
    const tokens = tokensOf(text);
    const finals = isFinal ? tokens.length : tokens.length - 1;
    tokens.forEach((token, index) => this.#block(token, index, index < finals));
    while (this.element.childElementCount > tokens.length) this.element.lastElementChild.remove();
    this.#raws.length = tokens.length;
    if (isRead) this.#read(finals);
    this.#finals = Math.max(this.#finals, finals);
  }

  #block(token, index, isFinal) {
    const raw = `${isFinal}${token.raw}`;
    if (this.#raws[index] === raw) return;
    this.#raws[index] = raw;
    const block = document.createElement("div");
    block.append(sanitised(htmlOf(token)));
    dressCode(block, isFinal);
    drawMaths(block);
    for (const table of block.querySelectorAll("table")) wrapTable(table);
    const old = this.element.children[index];
    if (old) old.replaceWith(block);
    else this.element.append(block);
  }

  #read(finals) {
    for (const block of [...this.element.children].slice(this.#finals, finals)) announce(spoken(block));
  }
}

/** What screen readers read of a block. Code is only named: it is read in the answer itself. */
function spoken(block) {
  return block.querySelector("pre")?.getAttribute("aria-label") ?? block.textContent;
}

function wrapTable(table) {
  const frame = document.createElement("div");
  frame.className = "table";
  frame.tabIndex = 0; // a wide table scrolls
  table.replaceWith(frame);
  frame.append(table);
}
