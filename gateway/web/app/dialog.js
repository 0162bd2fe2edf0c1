// Modal dialogs. Escape and a click outside close them. The focus returns to where it was.
import { h, iconButton, textButton } from "./dom.js";
import { t } from "./i18n.js";

/**
 * Show a dialog with a form. Returns a promise of the form's values, or of null if the user closed the dialog.
 * `action`: the text of the button that sends the form; "" for none. `danger`: the action cannot be undone.
 */
export function ask(title, content, { action = t("dialog.save"), danger = false, wide = false } = {}) {
  const close = () => dialog.close();
  const buttons = h("div", { class: "dialog-buttons" }, textButton(t(action ? "dialog.cancel" : "dialog.close"), close));
  if (action) buttons.append(h("button", { class: `button ${danger ? "danger" : "primary"}`, value: "sent" }, action));
  const form = h("form", { method: "dialog" }, content, buttons);
  const dialog = h(
    "dialog",
    { class: wide ? "dialog wide" : "dialog", "aria-labelledby": "dialog-title" },
    h("div", { class: "dialog-head" }, h("h2", { id: "dialog-title" }, title), iconButton("close", t("dialog.close"), close)),
    form,
  );
  dialog.addEventListener("pointerdown", (event) => event.target === dialog && close());
  document.body.append(dialog);
  dialog.showModal();
  (form.querySelector("[autofocus]") ?? form.querySelector("input, textarea, select, button"))?.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "sent" ? new FormData(form) : null);
      dialog.remove();
    });
  });
}

/** A promise of true if the user confirms. */
export async function confirm(title, text, action) {
  return (await ask(title, h("p", {}, text), { action, danger: true })) !== null;
}
