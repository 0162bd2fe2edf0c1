// The dialog for the API key. Requests that fail at the same time share one dialog.
import { ask } from "./dialog.js";
import { h } from "./dom.js";
import { t } from "./i18n.js";
import { isRemembered, key, setKey } from "./key.js";

let shown = null;

/** A promise of true if the user gave a key. `wasWrong`: the gateway refused the one that it got. */
export function askForKey(wasWrong) {
  shown ??= show(wasWrong).finally(() => (shown = null));
  return shown;
}

async function show(wasWrong) {
  const input = h("input", {
    id: "key", name: "key", type: "password", autocomplete: "off", autofocus: true, spellcheck: "false",
    "aria-describedby": "key-help",
  });
  input.value = key();
  const remember = h("input", { type: "checkbox", name: "remember", value: "yes" });
  remember.checked = isRemembered();
  const content = h(
    "div",
    { class: "fields" },
    h("p", { id: "key-help", role: wasWrong ? "alert" : null }, t(wasWrong ? "key.wrong" : "key.help")),
    h("label", { class: "field", for: "key" }, h("span", {}, t("key.label")), input),
    h("label", { class: "check" }, remember, h("span", {}, t("key.remember"))),
  );
  const values = await ask(t("key.title"), content, { action: t("key.use") });
  if (values === null) return false;
  setKey(values.get("key").trim(), values.has("remember"));
  return key() !== "";
}
