// Chats with Open WebUI in Chromium: node open_webui.mjs URL CHROMIUM MODEL QUESTION [SCREENSHOT]
// Prints one JSON object: the listed models, each text that the answer had while it grew, and the title of the chat.
// playwright-core is found in the current folder.
import { createRequire } from "node:module";

const { chromium } = createRequire(`${process.cwd()}/`)("playwright-core");
const [url, executablePath, model, question, screenshot] = process.argv.slice(2);
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

  await page.locator("#chat-input").click();
  await page.keyboard.type(question);
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Regenerate" }).last().waitFor(); // it is there when an answer is complete
  const answer = (await page.locator(".chat-assistant").last().innerText()).trim();
  const pieces = await page.evaluate(() => window.grown);
  await page.getByRole("button", { name: "Stop", exact: true }).waitFor({ state: "detached" });
  if (screenshot) await page.screenshot({ path: screenshot });
  console.log(JSON.stringify({ chosen, models, answer, pieces, title: await page.title() }));
} finally {
  await browser.close();
}
