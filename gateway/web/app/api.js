// Requests to the gateway's API, which has the same origin as the page.
import { t } from "./i18n.js";
import { key } from "./key.js";

/** A refused or failed request. `kind`: "http", "network" or "stopped". `status`: 0 without a reply. */
export class ApiError extends Error {
  constructor(kind, message, { status = 0, code = null, retryAfterS = null } = {}) {
    super(message);
    Object.assign(this, { kind, status, code, retryAfterS });
  }
}

let askForKey = async () => false;
let dismissed = null; // the key in use when the user closed the dialog; it does not open again for the same key

/** Call `ask` when the gateway wants a key. It returns a promise of true if the user gave one. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** Send a request. `body`: a value, sent as JSON. Asks for the key if the gateway wants one. Throws ApiError. */
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const given = key();
  const options = { method, signal, cache: "no-store", headers: { ...headers } };
  if (given) options.headers.authorization = `Bearer ${given}`;
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  const reply = await answered(path, options);
  if (reply.ok) return reply;
  if (reply.status === 401 && (key() !== given || (await hasNewKey(given)))) {
    return send(path, { method, body, headers, signal });
  }
  throw await refusal(reply);
}

async function hasNewKey(given) {
  if (dismissed === given) return false;
  const isGiven = await askForKey(given !== "");
  dismissed = isGiven ? null : given;
  return isGiven;
}

/** The JSON value at `path`. Throws ApiError. */
export async function get(path, options = {}) {
  return (await send(path, options)).json();
}

/** The JSON value of the reply to `body`. Throws ApiError. */
export async function post(path, body, options = {}) {
  return (await send(path, { ...options, method: "POST", body })).json();
}

async function answered(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    throw asApiError(error);
  }
}

/** What `fetch` or the reader of a reply throws, as an ApiError. */
export function asApiError(error) {
  if (error instanceof ApiError) return error;
  if (error.name === "AbortError") return new ApiError("stopped", t("error.stopped"));
  return new ApiError("network", t("error.network"));
}

async function refusal(reply) {
  let error = {};
  try {
    error = (await reply.json()).error;
  } catch {
    // not the gateway's own reply
  }
  return new ApiError("http", error?.message ?? t("error.status", { status: String(reply.status) }), {
    status: reply.status,
    code: error?.code ?? null,
    retryAfterS: Number(reply.headers.get("retry-after")) || null,
  });
}
