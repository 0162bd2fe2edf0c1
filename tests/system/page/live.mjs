// The live view.
import { chatCompletion, open, texts, until } from "./tools.mjs";

/** What the plots and the table show. */
export async function plots(page, url) {
  await open(page, url, "live");
  await page.locator(".plot canvas").nth(1).waitFor();
  await page.locator(".live-table summary").click();
  await page.locator(".live-table tbody tr").first().waitFor();
  const canvases = await page.locator(".plot canvas").evaluateAll((all) =>
    all.map((canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const colours = new Map();
      for (let at = 0; at < data.length; at += 4) {
        if (data[at + 3] < 255) continue;
        const colour = `#${[0, 1, 2].map((i) => data[at + i].toString(16).padStart(2, "0")).join("")}`;
        colours.set(colour, (colours.get(colour) ?? 0) + 1);
      }
      return { label: canvas.getAttribute("aria-label"), colours: Object.fromEntries(colours) };
    }),
  );
  const colours = await page.evaluate(() => {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(["accent", "warning", "danger"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  });
  const rows = await page.locator(".live-table tbody tr").evaluateAll((all) => all.map((row) => [...row.cells].map((cell) => cell.textContent)));
  await page.locator("#live-model").selectOption("paris");
  await until(page, () => [...document.querySelectorAll(".live-table tbody tr")].every((row) => row.cells[1].textContent === "paris"));
  return { canvases, colours, rows };
}

/** The breaker of `model` opens while the view is shown. */
export async function breaker(page, url, { model }) {
  await open(page, url, "live");
  const card = page.locator(".model", { has: page.locator("h3", { hasText: new RegExp(`^${model}$`) }) });
  await card.locator(".breaker[data-state=closed]").waitFor();
  const before = await card.locator(".breaker").textContent();
  const statuses = [];
  for (let count = 0; count < 2; count += 1) statuses.push((await chatCompletion(page, url, model)).status());
  await card.locator(".breaker[data-state=open]").waitFor();
  return {
    before,
    statuses,
    after: await card.locator(".breaker").textContent(),
    icons: await card.locator(".breaker .badge svg").count(),
    announced: await texts(page, "#announcer p"),
  };
}

/** A gateway with API keys asks for one. */
export async function key(page, url, { wrong, right }) {
  await open(page, url, "live");
  const dialog = page.locator("dialog[open]");
  await dialog.locator("input[name=key]").waitFor();
  await dialog.locator("input[name=key]").fill(wrong);
  await page.keyboard.press("Enter");
  await dialog.locator("[role=alert]").waitFor();
  const refused = await dialog.locator("[role=alert]").textContent();
  await dialog.locator("input[name=key]").fill(right);
  await page.keyboard.press("Enter");
  await page.locator(".model .badge").first().waitFor();
  await page.reload();
  await page.locator(".model .badge").first().waitFor();
  return {
    refused,
    limits: await texts(page, "[aria-labelledby=live-limits] tbody :is(th, td)"),
    dialogs: await page.locator("dialog").count(),
    kept: await page.evaluate(() => [sessionStorage, localStorage].map((each) => each.getItem("key"))),
  };
}

/** A user who gives no key gets the reason, and can try again. */
export async function noKey(page, url, { right }) {
  await open(page, url, "live");
  await page.locator("dialog[open] input[name=key]").waitFor();
  await page.keyboard.press("Escape");
  await page.locator(".live-note p").waitFor();
  const note = await page.locator(".live-note p").textContent();
  await page.locator(".live-note button").click();
  await page.locator("dialog[open] input[name=key]").fill(right);
  await page.keyboard.press("Enter");
  await page.locator(".model .badge").first().waitFor();
  return { note, isHidden: await page.locator(".live-note").isHidden() };
}

/** The gateway goes away and comes back. */
export async function away(page, url) {
  await open(page, url, "live");
  await page.locator(".model .badge").first().waitFor();
  await page.route("**/gateway/**", (route) => route.abort());
  const note = page.locator(".live-note p");
  const waits = [];
  await until(page, () => /in 1 s/.test(document.querySelector(".live-note p")?.textContent));
  await until(page, () => /in 2 s/.test(document.querySelector(".live-note p")?.textContent));
  waits.push(await note.textContent());
  await until(page, () => /in 3 s/.test(document.querySelector(".live-note p")?.textContent));
  await page.unroute("**/gateway/**");
  await page.locator(".live-note button").click();
  await page.locator(".live-note").waitFor({ state: "hidden" });
  return { waits, announced: await texts(page, "#announcer p") };
}

/** The log, its filter and its pause. */
export async function log(page, url) {
  await open(page, url, "live");
  const lines = page.locator(".log-line");
  await page.locator(".log-line.warning").first().waitFor();
  const all = await lines.count();
  await page.locator("#live-level").selectOption("warnings");
  const levels = new Set(await texts(page, ".log-line .log-level"));
  await page.locator("#live-level").selectOption("all");
  const pause = page.getByRole("button", { name: "Pause" });
  await pause.click();
  const paused = await lines.count();
  await chatCompletion(page, url, "paris");
  const button = page.getByRole("button", { name: /Continue \([1-9]/ });
  await button.waitFor();
  const still = await lines.count();
  await button.click();
  await until(page, (count) => document.querySelectorAll(".log-line").length > count, paused);
  return { all, levels: [...levels], paused, still };
}

/** Another gateway answers at the address: nothing of the first one stays. */
export async function restart(page, url) {
  let startedAt = 1;
  const seqs = { 1: [40, 41], 2: [1, 2, 42] };
  const polls = [];
  await page.route("**/gateway/live*", async (route) => {
    const after = Number(new URL(route.request().url()).searchParams.get("after"));
    const start = startedAt;
    polls.push([start, after]);
    const reply = await (await route.fetch()).json();
    const answers = seqs[start].filter((seq) => seq > after).map((seq) => ({ ...reply.answers[0], seq, model: `start-${start}` }));
    await route.fulfill({ json: { ...reply, started_at: start, answers } });
  });
  await chatCompletion(page, url, "paris");
  await open(page, url, "live");
  await page.locator(".live-table summary").click();
  await until(page, () => document.querySelectorAll(".live-table tbody tr").length === 2);
  startedAt = 2;
  await until(page, () => document.querySelectorAll(".live-table tbody tr").length === 3);
  return { models: await texts(page, ".live-table tbody td:nth-child(2)"), polls: polls.filter(([start]) => start === 2).slice(0, 2) };
}

/** Only a visible page polls. */
export async function hidden(page, url) {
  await page.clock.install();
  await open(page, url, "live");
  await page.locator(".model .badge").first().waitFor();
  let polls = 0;
  page.on("request", (request) => (polls += request.url().includes("/gateway/live")));
  await page.evaluate(() => (location.hash = "#chat"));
  await page.locator("#chat:visible").waitFor();
  const before = polls;
  await page.clock.runFor(30_000);
  return { more: polls - before };
}

/** Unload a model with its button, load it again, and see the reason of a model that cannot be loaded. */
export async function load(page, url, { model, broken }) {
  await open(page, url, "live");
  const button = (action, name) => page.getByRole("button", { name: `${action}: ${name}` });
  const card = (name) => page.locator(`.model[aria-label="${name}"]`);
  const state = (name, text) => card(name).locator(".model-head .badge", { hasText: text }).waitFor();
  await state(model, "Ready");
  await button("Unload", model).click();
  await state(model, "Not loaded");
  const memory = card(model).locator(".figures div", { hasText: "Memory" }).locator("dd");
  await memory.filter({ hasNotText: "MB" }).waitFor();
  await button("Load", model).click();
  await state(model, "Ready");
  await button("Load", broken).click();
  await card(broken).locator("[role=alert]:visible").waitFor();
  await memory.filter({ hasText: "MB" }).waitFor();
  return { error: await card(broken).locator("[role=alert]").textContent(), announced: await texts(page, "#announcer p") };
}

/** The tables of the usage. */
export async function usage(page, url) {
  await open(page, url, "live");
  await page.locator(".live-usage table").nth(1).waitFor();
  return page.locator(".live-usage tbody tr").evaluateAll((all) => all.map((row) => [...row.cells].map((cell) => cell.textContent)));
}
