// Messages for screen readers. Each one is added once and read out once.
import { h } from "./dom.js";

const MOST = 20;

export function announce(text) {
  const announcer = document.querySelector("#announcer");
  if (!text.trim()) return;
  announcer.append(h("p", {}, text));
  while (announcer.childElementCount > MOST) announcer.firstElementChild.remove();
}
