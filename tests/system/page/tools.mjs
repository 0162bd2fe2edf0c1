// Helpers of the scripts.

/** Open a view of the page, in a language and colours. */
export async function open(page, url, view, { language = "en", theme = "light" } = {}) {
  await page.addInitScript(
    ([language, theme]) => {
      localStorage.setItem("language", JSON.stringify(language));
      localStorage.setItem("theme", JSON.stringify(theme));
    },
    [language, theme],
  );
  await page.goto(`${url}/#${view}`);
  await page.locator(`#${view}:visible`).waitFor();
}

/** Wait until `condition(argument)` is true in the page. */
export const until = (page, condition, argument) => page.waitForFunction(condition, argument);

export const texts = (page, selector) => page.locator(selector).allTextContents();

/** The reply to a question that does not come from the page. */
export const chatCompletion = (page, url, model) =>
  page.request.post(`${url}/v1/chat/completions`, { data: { model, messages: [{ role: "user", content: "Hello" }] } });

/** Choose a model in the chat and send a message. */
export async function ask(page, model, text) {
  await page.locator(".picker").selectOption(model);
  await page.locator(".composer-text").fill(text);
  await page.keyboard.press("Enter");
}

/** Wait for the end of the answer in progress. */
export const ended = (page) => page.locator(".message.assistant[aria-busy=false]").last().waitFor();
