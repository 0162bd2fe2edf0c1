// Screenshots for the documentation.
import { ask, chatCompletion, ended, open } from "./tools.mjs";

/** Fonts that a Debian machine has, close to those of Windows. */
async function useFonts(page) {
  await page.addInitScript(() =>
    addEventListener("DOMContentLoaded", () => {
      const style = document.documentElement.style;
      style.setProperty("--font", '"Liberation Sans", "WenQuanYi Micro Hei", sans-serif');
      style.setProperty("--mono", '"Liberation Mono", "WenQuanYi Micro Hei", monospace');
    }),
  );
}

async function shoot(page, file) {
  await page.evaluate(() => document.fonts.ready.then(() => document.activeElement?.blur()));
  await page.mouse.move(0, 0);
  await page.screenshot({ path: file });
}

/** Ask a question and photograph the answer. */
export async function chat(page, url, { file, language, theme, question, model }) {
  await useFonts(page);
  await open(page, url, "chat", { language, theme });
  await ask(page, model, question);
  await ended(page);
  await page.locator(".code span[class*=hljs]").first().waitFor();
  await shoot(page, file);
}

/** Photograph the live view. */
export async function live(page, url, { file, language, theme }) {
  await useFonts(page);
  await open(page, url, "live", { language, theme });
  await page.locator(".plot canvas").nth(1).waitFor();
  await shoot(page, file);
}

/** Questions to the models, several at a time, so that there is something to see. */
export async function traffic(page, url, { models, rounds }) {
  for (let round = 0; round < rounds; round += 1) await Promise.all(models.map((model) => chatCompletion(page, url, model)));
}
