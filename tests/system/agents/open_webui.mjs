// Chats with Open WebUI in Chromium: node open_webui.mjs URL CHROMIUM MODEL QUESTION SECOND LONG
// Puts two questions, stops the answer to a third and adds an image. Prints one JSON object: the listed models, each text
// that the first answer had while it grew, both answers, the title of the chat and the message about the image.
// playwright-core is found in the current folder.
import { createRequire } from "node:module";

const { chromium } = createRequire(`${process.cwd()}/`)("playwright-core");
const [url, executablePath, model, question, second, long] = process.argv.slice(2);
const LIMIT = 600_000; // ms; a busy machine
const args = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
args.push("--disable-component-update", "--disable-sync", "--no-sandbox"); // Chromium as root needs no sandbox

const browser = await chromium.launch({ executablePath, args });
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(LIMIT);
  await page.addInitScript(() => {
    window.grown = []; // every text of the newest answer
    new MutationObserver(() => {
      const text = [...document.querySelectorAll(".chat-assistant")].at(-1)?.innerText.trim() ?? "";
      if (text && text !== window.grown.at(-1)) window.grown.push(text);
    }).observe(document, { subtree: true, childList: true, characterData: true });
  });
  await page.goto(url);
  await page.getByRole("button", { name: /^Okay, Let.s Go!$/ }).click(); // what is new

  const selector = page.locator("#model-selector-model-button");
  const chosen = (await selector.innerText()).trim();
  await selector.click();
  await page.getByRole("option", { name: model }).first().waitFor();
  const models = await page.getByRole("option").evaluateAll((all) => all.map((each) => each.dataset.value));
  await page.keyboard.press("Escape");

  const stop = page.getByRole("button", { name: "Stop", exact: true });
  const last = page.locator(".chat-assistant").last();
  const send = async (text) => {
    await page.locator("#chat-input").click();
    await page.keyboard.type(text);
    await page.keyboard.press("Enter");
    await stop.waitFor();
  };
  const answer = async (text) => {
    await send(text);
    await stop.waitFor({ state: "detached" }); // after the answer and the requests for a title, questions and tags
    return (await last.innerText()).trim();
  };
  const answers = [await answer(question)];
  const pieces = await page.evaluate(() => window.grown);
  answers.push(await answer(second));
  await send(long);
  await page.locator(".chat-assistant").nth(answers.length).filter({ hasText: /\S/ }).waitFor();
  await stop.click();
  await stop.waitFor({ state: "detached" });

  const image = { name: "a.png", mimeType: "image/png", buffer: Buffer.from("a") };
  await page.locator("input[type=file]").first().setInputFiles(image);
  const refusal = await page.locator("[data-sonner-toast]").filter({ hasText: "image" }).innerText();
  console.log(JSON.stringify({ chosen, models, answers, pieces, title: await page.title(), refusal }));
} finally {
  await browser.close();
}
