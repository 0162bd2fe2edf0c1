// The messages of a conversation from the first to the last, and the scrolling.
import { h, icon } from "../app/dom.js";
import { t } from "../app/i18n.js";
import { MessageView } from "./message.js";
import { pathTo, versions } from "./tree.js";

const PAUSE = 3; // between two updates, in times of the last one
const NEAR = 60; // pixels from the end; a reader who is nearer follows the answer

/** `actionsOf(node)`: the actions of a message. `empty`: what an empty conversation shows. */
export class Thread {
  #views = new Map();
  #isWaiting = false;
  #pause = 0; // milliseconds

  constructor(actionsOf, empty) {
    this.actionsOf = actionsOf;
    this.empty = empty;
    this.list = h("div", { class: "thread" });
    this.down = h(
      "button",
      { type: "button", class: "to-end", "aria-label": t("thread.end"), title: t("thread.end"), hidden: true, on: { click: () => this.toEnd() } },
      icon("down"),
    );
    this.scroller = h("div", { class: "scroller", on: { scroll: () => this.#showDown() } }, this.empty, this.list);
    this.element = h("div", { class: "thread-frame" }, this.scroller, this.down);
  }

  /** Show the conversation's path, from its end if `isAtEnd`. Messages that are shown already stay. */
  show(conversation, isAtEnd) {
    const { scrollTop } = this.scroller;
    const path = pathTo(conversation, conversation.leaf);
    const shown = new Map();
    for (const node of path) {
      const all = versions(conversation, node);
      const old = this.#views.get(node.id);
      const same = old && old.node === node && old.versions.length === all.length;
      shown.set(node.id, same ? old : new MessageView(node, all, this.actionsOf(node)));
    }
    this.#views = shown;
    this.list.replaceChildren(...[...shown.values()].map((view) => view.element));
    this.empty.hidden = path.length > 0;
    if (isAtEnd) this.toEnd();
    else this.scroller.scrollTop = scrollTop;
    this.#showDown();
  }

  /** Show again what changed in a message, while it grows at most once for each picture of the screen. */
  changed(node) {
    if (!node.live) this.#update(node);
    else if (!this.#isWaiting) {
      this.#isWaiting = true;
      const update = () => {
        this.#isWaiting = false;
        this.#update(node);
      };
      setTimeout(() => requestAnimationFrame(update), this.#pause);
    }
  }

  /** A long answer takes longer to show, and gets pauses, so that the page stays quick. */
  #update(node) {
    const began = performance.now();
    const follows = this.#isAtEnd();
    this.#views.get(node.id)?.update();
    if (follows) this.toEnd();
    this.#showDown();
    this.#pause = PAUSE * (performance.now() - began);
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  #isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }

  #showDown() {
    this.down.hidden = this.#isAtEnd();
  }
}
