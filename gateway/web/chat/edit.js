// The form that changes a message of the user. The answer is made again from there.
import { h, textButton } from "../app/dom.js";
import { t } from "../app/i18n.js";
import { fitHeight, isEnter } from "./textarea.js";

/** `save(text)` and `close()` are called once. */
export function editForm(text, { save, close }) {
  const area = h("textarea", { rows: "2", "aria-label": t("message.edit") });
  area.value = text;
  const send = () => area.value.trim() && save(area.value);
  area.addEventListener("input", () => fitHeight(area));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (isEnter(event)) {
      event.preventDefault();
      send();
    }
  });
  requestAnimationFrame(() => fitHeight(area));
  const buttons = h(
    "div",
    { class: "dialog-buttons" },
    textButton(t("dialog.cancel"), close),
    textButton(t("message.edit.send"), send, { class: "button primary" }),
  );
  return h("div", { class: "edit" }, area, buttons);
}
