// The buttons at the right of the page's header: key, language, colours.
import { iconButton } from "./dom.js";
import { currentLanguage, LANGUAGES, onLanguage, setLanguage, t } from "./i18n.js";
import { askForKey } from "./key_dialog.js";
import { setTheme, theme, THEMES } from "./theme.js";

const ICON = { system: "system", light: "sun", dark: "moon" };

export function showTools(element) {
  const render = () => element.replaceChildren(keyButton(), languageButton(), themeButton(render));
  render();
  onLanguage(render);
}

function keyButton() {
  return iconButton("key", t("key.title"), () => askForKey(false));
}

function languageButton() {
  const names = Object.keys(LANGUAGES);
  const next = names[(names.indexOf(currentLanguage()) + 1) % names.length];
  const click = () => {
    setLanguage(next);
    document.querySelector("[data-tool=language]").focus();
  };
  return iconButton("language", LANGUAGES[next], click, { lang: next, "data-tool": "language" });
}

function themeButton(render) {
  const current = theme();
  const click = () => {
    setTheme(THEMES[(THEMES.indexOf(current) + 1) % THEMES.length]);
    render();
    document.querySelector("[data-tool=theme]").focus();
  };
  return iconButton(ICON[current], t(`theme.${current}`), click, { "data-tool": "theme" });
}
