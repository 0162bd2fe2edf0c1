// The chat.
import { ask, ended, open, texts, until } from "./tools.mjs";

const answers = (page) => texts(page, ".message.assistant .text");

/** Ask a model that would write for minutes, without the limit of new chats, read four states, and stop. `ignoreEnd`: it must not end by itself. */
export async function stream(page, url, { model, ignoreEnd }) {
  await page.route("**/v1/chat/completions", (route) => {
    const { max_tokens, ...body } = route.request().postDataJSON();
    return route.continue({ postData: JSON.stringify({ ...body, ignore_eos: ignoreEnd }) });
  });
  await open(page, url, "chat");
  await ask(page, model, "Write a long story.");
  const states = [""];
  while (states.length < 5) {
    await until(page, (length) => document.querySelector(".message.assistant .text")?.textContent.length > length, states.at(-1).length);
    states.push(await page.locator(".message.assistant .text").textContent());
  }
  const isBusy = await page.locator(".message.assistant").getAttribute("aria-busy");
  await page.getByRole("button", { name: /^Stop/ }).click();
  await ended(page);
  return { lengths: states.map((state) => state.length), isBusy, note: await page.locator(".message-note").last().textContent() };
}

/** Everything that an answer can have. */
export async function markdown(page, url, { model }) {
  await open(page, url, "chat");
  await ask(page, model, "Show me everything.");
  await ended(page);
  const count = (selector) => page.locator(`.message.assistant .text ${selector}`).count();
  await page.locator(".message.assistant .text math").first().waitFor();
  await page.locator(".message.assistant .text .code span[class*=hljs]").first().waitFor();
  return {
    strong: await count("strong"), items: await count("li"), cells: await count("td"), code: await count("pre code"),
    text: (await answers(page))[0],
  };
}

/** Answers of a model that attacks the page. */
export async function hostile(page, url, { model, count }) {
  await open(page, url, "chat");
  for (let asked = 1; asked <= count; asked += 1) {
    await ask(page, model, `Attack ${asked}`);
    await until(page, (n) => document.querySelectorAll(".message.assistant[aria-busy=false]").length === n, asked);
  }
  await page.evaluate(() => document.querySelectorAll("details").forEach((each) => (each.open = true)));
  const found = await page.evaluate(() => {
    const all = [...document.querySelectorAll(".message.assistant .text *")].filter((each) => !each.closest(".code-head"));
    const schemes = ["http:", "https:", "mailto:"];
    return {
      tags: all.map((each) => each.localName).filter((name) => /^(script|iframe|object|embed|form|input|button|style|link|meta|base|video|audio|svg|img)$/.test(name)),
      handlers: all.flatMap((each) => each.getAttributeNames()).filter((name) => name.startsWith("on")),
      links: all.filter((each) => each.hasAttribute("href")).map((each) => each.href).filter((href) => !schemes.includes(new URL(href).protocol)),
      rels: all.filter((each) => each.matches("a[href]")).map((each) => `${each.rel} ${each.target}`),
      hacked: window.hacked ?? null,
      width: document.documentElement.scrollWidth - innerWidth,
      title: document.title,
    };
  });
  return { ...found, answers: await answers(page) };
}

/** True when the browser's database has a conversation whose last answer is complete. Runs in the page. */
const isStored = () =>
  new Promise((resolve) => {
    const opening = indexedDB.open("npu-gateway");
    opening.onsuccess = () => {
      const reading = opening.result.transaction("conversations").objectStore("conversations").getAll();
      reading.onsuccess = () => {
        opening.result.close();
        resolve(reading.result.some((each) => each.nodes.at(-1).ending));
      };
    };
  });

/** Conversations survive a reload; messages can be edited, and answers made again. */
export async function conversation(page, url, { model }) {
  await open(page, url, "chat");
  await ask(page, model, "First question");
  await ended(page);
  await until(page, isStored);
  await page.reload();
  await page.locator(".message.assistant .text").waitFor();
  const reloaded = [await texts(page, ".message.user .plain"), await answers(page)];
  await page.getByRole("button", { name: "Answer again" }).click();
  await page.locator(".versions .version").waitFor();
  await ended(page);
  const again = await texts(page, ".versions .version");
  const second = await answers(page);
  await page.getByRole("button", { name: "Previous version" }).click();
  await until(page, (text) => document.querySelector(".message.assistant .text").textContent !== text, second[0]);
  const previous = await answers(page);
  await page.locator(".message.user").hover();
  await page.getByRole("button", { name: "Edit" }).click();
  await page.locator(".edit textarea").fill("Other question");
  await page.locator(".edit .primary").click();
  await until(page, () => document.querySelector(".message.user .plain")?.textContent === "Other question");
  await ended(page);
  return { reloaded, again, second, previous, edited: [await texts(page, ".message.user .plain"), await answers(page)] };
}

/** A text file goes with the message; a picture is refused. */
export async function attachment(page, url, { model, text }) {
  await open(page, url, "chat");
  let sent = null;
  page.on("request", (request) => (sent = request.url().endsWith("/v1/chat/completions") ? request.postDataJSON() : sent));
  const input = page.locator("input[type=file]").last();
  await input.setInputFiles({ name: "picture.png", mimeType: "image/png", buffer: Buffer.from([0x89, 0x50, 0x4e, 0x47, 0, 0, 0, 1]) });
  await page.locator(".composer [role=alert]:visible").waitFor();
  const refused = await page.locator(".composer [role=alert]").textContent();
  await input.setInputFiles({ name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from(text) });
  await page.locator(".chip").waitFor();
  await ask(page, model, "What is in it?");
  await ended(page);
  return { refused, sent: JSON.stringify(sent?.messages), shown: await texts(page, ".message.user .file summary") };
}

/** A model that refuses shows why, and how long to wait. */
export async function refused(page, url, { model }) {
  await open(page, url, "chat");
  for (const question of ["One", "Two"]) {
    await ask(page, model, question);
    await ended(page);
    await until(page, () => !document.querySelector(".message[aria-busy=true]"));
  }
  await page.locator(".message-note [role=alert]").waitFor();
  return { note: await page.locator(".message-note [role=alert]").textContent() };
}
