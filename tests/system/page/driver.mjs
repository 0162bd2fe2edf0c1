// One browser for all tests. Reads a command from each line of stdin, writes the result as a line to stdout:
// {"file": "live", "name": "plots", "url": ..., "context": {...}, "args": {...}}
//   -> {"value": ..., "requests": [...], "errors": [...]} or {"failure": "..."}
// Each command gets a page in its own context: own storage, own cache.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const PATIENCE_MS = 90_000; // tests wait for a state, never for a time

// No name resolves: a request to another machine fails, and `requests` has it.
const args = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-gpu", "--disable-dev-shm-usage"];
const browser = await chromium.launch({ executablePath: process.argv[2], args, timeout: PATIENCE_MS });
console.log(JSON.stringify({ version: browser.version() }));
for await (const line of createInterface({ input: process.stdin })) console.log(JSON.stringify(await answer(JSON.parse(line))));
await browser.close();

async function answer({ file, name, url, context: options, args }) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, locale: "en-GB", ...options });
  const requests = [];
  const errors = [];
  try {
    context.setDefaultTimeout(PATIENCE_MS);
    context.on("request", (request) => requests.push(request.url()));
    context.on("console", (message) => ["error", "warning"].includes(message.type()) && errors.push(message.text()));
    context.on("weberror", (problem) => errors.push(String(problem.error())));
    await context.addInitScript(() => {
      addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
    });
    const page = await context.newPage();
    const scenario = (await import(`./${file}.mjs`))[name];
    return { value: (await scenario(page, url, args, context)) ?? null, requests, errors };
  } catch (error) {
    return { failure: error.stack, requests, errors };
  } finally {
    await context.close();
  }
}
