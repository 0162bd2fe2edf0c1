// Copies text, also where the browser has no clipboard API (plain HTTP from another machine).
import { announce } from "../app/announce.js";
import { icon, iconButton } from "../app/dom.js";
import { t } from "../app/i18n.js";

const SHOWN_MS = 1500;

export function copyButton(text) {
  const button = iconButton("copy", t("copy"), async () => {
    const copied = await copy(text());
    announce(t(copied ? "copied" : "copy.failed"));
    button.replaceChildren(icon(copied ? "check" : "close"));
    setTimeout(() => button.replaceChildren(icon("copy")), SHOWN_MS);
  });
  button.classList.add("small");
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text);
  }
}

function copySelected(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}
