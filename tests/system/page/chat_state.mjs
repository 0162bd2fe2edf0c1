// The chat in a bad state, and what it keeps.
import { ask, ended, open, texts, until } from "./tools.mjs";

const answers = async (page) => (await texts(page, ".message.assistant .text")).map((text) => text.trim());
const count = (page, selector, number) => until(page, ([selector, number]) => document.querySelectorAll(selector).length === number, [selector, number]);

/** New conversations have no limit, so an answer of minutes does not end by itself. */
const withoutLimit = (page) => page.addInitScript(() => localStorage.setItem("settings", "{}"));

/** Put values into the database of the page. */
const store = (page, conversations, titles) =>
  page.evaluate(
    ([conversations, titles]) =>
      new Promise((resolve) => {
        const request = indexedDB.open("npu-gateway");
        request.onsuccess = () => {
          const transaction = request.result.transaction(["conversations", "titles"], "readwrite");
          for (const each of conversations) transaction.objectStore("conversations").put(each);
          for (const each of titles) transaction.objectStore("titles").put(each);
          transaction.oncomplete = resolve;
        };
      }),
    [conversations, titles],
  );

/** Damaged settings and conversations: what is left of them is shown, and the chat works. */
export async function damaged(page, url, { model }) {
  await open(page, url, "chat");
  await page.locator(".empty-title").waitFor();
  const nodes = [null, 3, { id: "q", role: "user", content: 5, parent: "lost" }, { id: "a", role: "assistant", content: "Left over.", parent: "q", usage: "no", error: 3, calls: [{}], ending: "stop", live: true }];
  const circle = [{ id: "b", role: "user", parent: "c", content: "One" }, { id: "a", role: "user", parent: "c", content: "Two" }, { id: "a", role: "user" }, { id: "c", role: "assistant", parent: "a", ending: "error" }];
  await store(page, [{ id: "circle", nodes: circle, leaf: "c" }], [{ id: "circle", title: "Circle", updated: 3e15 }]);
  await store(page, [{ id: "bad", nodes, model: "gone-model", leaf: "lost" }, { id: "empty", nodes: 7 }], [{ id: "bad", title: "Bad", updated: 2e15 }, { id: "empty", title: null, updated: 1e15 }, { id: "none", updated: "x" }]);
  await page.evaluate(() => {
    for (const name of ["settings", "model", "key"]) localStorage.setItem(name, "{{{");
    localStorage.setItem("language", '"constructor"');
    sessionStorage.setItem("conversation", "[1");
  });
  await page.goto(`${url}/#constructor`);
  await page.reload();
  await page.locator(".row-title", { hasText: "Circle" }).click();
  await page.locator(".message.assistant [role=alert]").waitFor();
  await page.locator(".message.user .versions button").first().click();
  await page.locator(".message.user", { hasText: "One" }).waitFor();
  await page.locator(".row-title", { hasText: "Untitled" }).first().click();
  await page.locator(".row-title", { hasText: "Bad" }).click();
  await page.locator(".message.assistant").waitFor();
  const shown = await answers(page);
  await until(page, () => document.querySelector(".picker").selectedOptions[0]?.textContent.includes("not there any more"));
  await page.locator(".composer-text").fill("Hello");
  await page.keyboard.press("Enter");
  await page.locator(".message-note [role=alert]").waitFor();
  const note = await page.locator(".message-note [role=alert]").textContent();
  await page.locator(".picker").selectOption(model);
  await page.locator(".message-note button", { hasText: "Try again" }).click();
  await until(page, () => document.querySelector(".message:last-child .stats"));
  return { shown, note, answer: (await answers(page)).at(-1) };
}

/** A full storage, and none at all: answers come, and the page says that they are not kept. */
export async function unkept(page, url, { model }, context) {
  await open(page, url, "chat");
  await page.evaluate(() => {
    const full = () => {
      throw new DOMException("full", "QuotaExceededError");
    };
    IDBObjectStore.prototype.put = full;
    Storage.prototype.setItem = full;
  });
  await ask(page, model, "Hello");
  await page.locator(".notice .note").waitFor();
  await page.locator(".message .stats").waitFor();
  const notices = await texts(page, ".notice .note");
  const other = await context.newPage();
  await other.addInitScript(() => {
    const none = { get: () => { throw new DOMException("denied", "SecurityError"); } };
    for (const name of ["indexedDB", "localStorage", "sessionStorage"]) Object.defineProperty(window, name, none);
  });
  await other.goto(url);
  await other.locator(".notice .note").waitFor();
  await ask(other, model, "Hello");
  await other.locator(".message .stats").waitFor();
  await other.getByRole("button", { name: "New chat" }).first().click();
  await other.locator(".row-title", { hasText: "Hello" }).click();
  return { notices: [...notices, ...(await texts(other, ".notice .note"))], answers: [...(await answers(page)), ...(await answers(other))] };
}

/** Two tabs: each shows what the other adds; a conversation that one deletes is left by the other. */
export async function tabs(page, url, { model }, context) {
  await open(page, url, "chat");
  await ask(page, model, "From the first tab");
  await page.locator(".message .stats").waitFor();
  const other = await context.newPage();
  await open(other, url, "chat");
  await other.locator(".row-title").click();
  await other.locator(".message .stats").waitFor();
  await ask(other, model, "From the second tab");
  await count(page, ".message .stats", 2);
  await ask(page, model, "From the first tab again");
  await count(other, ".message .stats", 3);
  const shown = await texts(other, ".message.user .plain");
  await other.locator(".row.current").hover();
  await other.locator(".row.current button").last().click();
  await other.locator("dialog .danger").click();
  await page.locator(".empty-title").waitFor();
  await count(page, ".row", 0);
  return { shown, left: await other.locator(".row").count() };
}

/** The gateway cannot be reached during an answer: the part of it is kept, and it goes on. */
export async function lost(page, url, { model }, context) {
  await withoutLimit(page);
  await open(page, url, "chat");
  await ask(page, model, "Write");
  await until(page, () => document.querySelector(".message.assistant .text")?.textContent.length > 4);
  await page.locator(".row").waitFor(); // the conversation is stored
  await page.reload(); // ends the connection
  await page.locator(".message-note .note").waitFor();
  const note = await page.locator(".message-note .note").textContent();
  await context.setOffline(true);
  await page.locator(".message-note button", { hasText: "Try again" }).click();
  await page.locator(".message-note [role=alert]").waitFor();
  const alert = await page.locator(".message-note [role=alert]").textContent();
  await context.setOffline(false);
  await page.locator(".message-note button", { hasText: "Try again" }).click();
  await until(page, () => document.querySelector(".message.assistant .text")?.textContent.length > 4);
  await page.keyboard.press("Escape");
  await page.locator(".message-note button", { hasText: "Continue" }).waitFor();
  return { note, alert, versions: await texts(page, ".message.assistant .version") };
}

/** The limit of the settings cuts an answer; it goes on in the same message, with the text so far as the model's start. */
export async function cut(page, url, { model, limit }) {
  await open(page, url, "chat");
  await page.getByRole("button", { name: "Settings of this chat" }).click();
  await page.locator("#setting-max_tokens").fill(String(limit));
  await page.locator("#setting-system").fill("Be brief.");
  await page.locator("dialog .primary").click();
  const bodies = [];
  page.on("request", (request) => request.url().endsWith("/v1/chat/completions") && bodies.push(request.postDataJSON()));
  await ask(page, model, "Write");
  await page.locator(".message-note button", { hasText: "Continue" }).waitFor();
  const first = { text: (await answers(page))[0], note: await page.locator(".message-note").last().textContent() };
  await page.locator(".message-note button", { hasText: "Continue" }).click();
  await until(page, (length) => document.querySelector(".message.assistant .text").textContent.trim().length === 2 * length, first.text.length);
  await page.locator(".message-note button", { hasText: "Continue" }).waitFor();
  return { ...first, after: await answers(page), bodies, versions: await page.locator(".version").count() };
}

/** Conversations as a file: what is exported can be imported again. Reasoning and tool calls are folded. */
export async function transfer(page, url) {
  await open(page, url, "chat");
  const input = page.locator(".sidebar input[type=file]");
  const choose = (text) => input.setInputFiles({ name: "chats.json", mimeType: "application/json", buffer: Buffer.from(text) });
  await choose("{}");
  await page.locator("dialog p").waitFor();
  const refused = await page.locator("dialog p").textContent();
  await page.keyboard.press("Escape");
  const nodes = [
    { id: "q", role: "user", content: "Weather?", parent: null },
    { id: "a", role: "assistant", content: "", reasoning: "A tool is needed.", calls: [{ name: "weather", arguments: '{"city":"Oslo"}' }], parent: "q", ending: "tool_calls" },
  ];
  await choose(JSON.stringify({ format: "npu-gateway-conversations", version: 1, conversations: [{ title: "Forecast", nodes }] }));
  await page.locator(".message.assistant").waitFor();
  const folded = await page.locator(".message .fold").evaluateAll((all) => all.map((each) => [each.open, each.textContent.replace(/\s+/g, " ")]));
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Export all" }).click()]);
  const chunks = [];
  for await (const chunk of await download.createReadStream()) chunks.push(chunk);
  const exported = Buffer.concat(chunks).toString();
  await choose(exported);
  await count(page, ".row", 2);
  return { refused, folded, exported: JSON.parse(exported), titles: await texts(page, ".row-title") };
}

/** Keys: Shift+Enter adds a line, the Enter of an input method sends nothing, Escape stops; a draft outlives the view. */
export async function keys(page, url, { model }) {
  await withoutLimit(page);
  await open(page, url, "chat");
  await page.locator(".picker").selectOption(model);
  const area = page.locator(".composer-text");
  await area.click();
  await page.keyboard.type("one");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("two");
  await area.dispatchEvent("keydown", { key: "Enter", isComposing: true });
  const composed = await page.locator(".message").count();
  await page.locator("[data-tool=language]").click();
  await page.locator("html[lang=zh-CN]").waitFor();
  await page.locator('.views a[href="#live"]').click();
  await page.locator("#live:visible").waitFor();
  await page.locator('.views a[href="#chat"]').click();
  const draft = await area.inputValue();
  await area.press("Enter");
  await until(page, () => document.querySelector(".message.assistant .text")?.textContent.length > 4);
  await page.keyboard.press("Escape");
  await ended(page);
  return { composed, draft, sent: await texts(page, ".message.user .plain"), note: await page.locator(".message-note").last().textContent() };
}
