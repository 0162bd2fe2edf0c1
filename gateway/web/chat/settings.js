// The dialog for the system prompt and the sampling of a conversation.
import { ask } from "../app/dialog.js";
import { h } from "../app/dom.js";
import { t } from "../app/i18n.js";
import { read, write } from "../app/storage.js";
import { settingsOf } from "./record.js";

const NUMBERS = {
  temperature: { min: 0, max: 2, step: 0.05 },
  top_p: { min: 0, max: 1, step: 0.05 },
  max_tokens: { min: 1, step: 1 },
  seed: { step: 1 },
};

/** The settings of new conversations. The gateway's own limit is for programs; a person can stop an answer. */
export const defaultSettings = () => settingsOf(read("settings", { max_tokens: 1024 }));

/** Ask for the settings. A promise of the new ones, or of null. `focus`: the field to begin with. */
export async function askForSettings(settings, focus = "system") {
  const system = h("textarea", { name: "system", id: "setting-system", rows: "4", autofocus: focus === "system" });
  system.value = settings.system ?? "";
  const keep = h("input", { type: "checkbox", name: "keep", value: "yes" });
  const content = h(
    "div",
    { class: "fields" },
    field("system", system),
    h("div", { class: "number-fields" }, Object.entries(NUMBERS).map(([name, limits]) => numberField(name, limits, settings, focus))),
    h("p", { class: "help" }, t("settings.empty")),
    h("label", { class: "check" }, keep, h("span", {}, t("settings.keep"))),
  );
  const values = await ask(t("settings.title"), content, { wide: true });
  if (values === null) return null;
  const changed = settingsFrom(values);
  if (values.has("keep")) write("settings", changed);
  return changed;
}

function numberField(name, limits, settings, focus) {
  const input = h("input", {
    type: "number", name, id: `setting-${name}`, inputmode: "decimal", autofocus: focus === name, ...limits,
    placeholder: t("settings.default"),
  });
  if (settings[name] !== undefined) input.value = settings[name];
  return field(name, input);
}

function field(name, input) {
  input.setAttribute("aria-describedby", `${input.id}-help`);
  const help = h("small", { id: `${input.id}-help` }, t(`settings.${name}.help`));
  return h("label", { class: "field", for: input.id }, h("span", {}, t(`settings.${name}`)), input, help);
}

function settingsFrom(values) {
  const given = { system: values.get("system").trim() };
  for (const name of Object.keys(NUMBERS)) if (values.get(name) !== "") given[name] = Number(values.get(name));
  return settingsOf(given);
}
