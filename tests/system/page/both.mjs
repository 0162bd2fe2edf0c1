// Both views: accessibility in every language, colour and width.
import { readFileSync } from "node:fs";
import { ask, ended, open } from "./tools.mjs";

const AXE = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf-8");
const COMBINATIONS = ["en", "zh-CN"].flatMap((language) =>
  ["light", "dark"].flatMap((theme) => [320, 1280].map((width) => ({ language, theme, width }))),
);

/** Violations of the live view, with its table open. */
export async function axeLive(page, url) {
  await open(page, url, "live");
  await page.evaluate(AXE);
  return violations(page, async () => {
    await page.locator(".plot canvas").first().waitFor();
    await page.locator(".live-table").evaluate((table) => (table.open = true));
    await page.locator(".live-table tbody tr, .live-empty:visible").first().waitFor();
    await page.locator(".log-line").first().waitFor();
  });
}

/** Violations of the chat, with an answer that has everything, and a refusal. */
export async function axeChat(page, url, { model, refusing }) {
  await open(page, url, "chat");
  await ask(page, model, "Show me everything.");
  await ended(page);
  await ask(page, refusing, "Refuse.");
  await page.locator(".message-note [role=alert]").waitFor();
  await page.evaluate(AXE);
  return violations(page, () => page.locator(".message-note [role=alert]").waitFor());
}

/** Violations of the dialogs, in the narrow page. */
export async function axeDialogs(page, url) {
  await open(page, url, "chat");
  await page.evaluate(AXE);
  await page.setViewportSize({ width: 320, height: 700 });
  const found = [];
  for (const name of ["Settings of this chat", "API key"]) {
    await page.getByRole("button", { name }).click();
    await page.locator("dialog[open]").waitFor();
    found.push(...(await check(page, name)));
    await page.keyboard.press("Escape");
    await page.locator("dialog").waitFor({ state: "detached" });
  }
  return found;
}

/** `ready`: wait until the view is complete. */
async function violations(page, ready) {
  const found = [];
  for (const { language, theme, width } of COMBINATIONS) {
    await page.setViewportSize({ width, height: 900 });
    await page.evaluate(
      async ([language, theme]) => {
        (await import("/web/app/theme.js")).setTheme(theme);
        (await import("/web/app/i18n.js")).setLanguage(language);
      },
      [language, theme],
    );
    await ready();
    found.push(...(await check(page, `${language} ${theme} ${width}`)));
  }
  return found;
}

async function check(page, where) {
  const { results, wide } = await page.evaluate(async () => ({
    results: (await axe.run({ resultTypes: ["violations"], preload: false })).violations.map((each) => [
      each.id,
      ...each.nodes.slice(0, 3).map((node) => `${node.html.slice(0, 200)} ${node.failureSummary}`),
    ]),
    wide: [document.documentElement, ...document.querySelectorAll("#main > section, .scroller")]
      .filter((each) => each.scrollWidth > each.clientWidth)
      .map((each) => each.id || each.className || "page"),
  }));
  if (wide.length) results.push([`wider than the window: ${wide}`]);
  return results.map((each) => [where, ...each].join("\n"));
}
