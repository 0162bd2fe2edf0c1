// The start of the page: language, colours, and the two views. The address has the view: `#chat` or `#live`.
import * as chat from "../chat/chat.js";
import * as live from "../live/live.js";
import { onKeyNeeded } from "./api.js";
import { onLanguage, t, translate } from "./i18n.js";
import { askForKey } from "./key_dialog.js";
import { apply } from "./theme.js";
import { showTools } from "./tools.js";

/** Each view has `show(section)` and `hide()`. After a change of the language it is shown again. */
const VIEWS = { chat, live };
let current = null;

function view() {
  const name = location.hash.slice(1);
  return Object.hasOwn(VIEWS, name) ? name : "chat";
}

function show(name) {
  if (current !== null) {
    VIEWS[current].hide();
    document.getElementById(current).replaceChildren();
  }
  current = name;
  for (const each of Object.keys(VIEWS)) document.getElementById(each).hidden = each !== name;
  for (const link of document.querySelectorAll(".views a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${t(`view.${name}`)} · npu-gateway`;
  VIEWS[name].show(document.getElementById(name));
}

apply();
translate(document.documentElement);
onKeyNeeded(askForKey);
showTools(document.querySelector("#tools"));
onLanguage(() => show(current));
addEventListener("hashchange", () => show(view()));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.querySelector("#main").focus();
});
show(view());
