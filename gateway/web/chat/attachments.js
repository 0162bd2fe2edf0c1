// Files as text in a message.
import { post } from "../app/api.js";
import { formatNumber, t } from "../app/i18n.js";

const BYTES_OF_TOKEN = 8; // a larger file cannot fit, whatever its text is
const CHARACTERS_OF_TOKEN = 3; // about; where the model does not count
const COUNTING = ["own", "genie"]; // runtimes with a tokenizer in the gateway
const DEFAULT_CONTEXT = 131_072;

/** A refused file; the message is for the user. */
export class FileRefused extends Error {}

/**
 * Read a file. `used`: tokens of the files that the message already has. Returns `{name, text, tokens}`; throws FileRefused.
 */
export async function readFile(file, card, used) {
  const context = card?.context_length || DEFAULT_CONTEXT;
  if (file.size > context * BYTES_OF_TOKEN) {
    throw new FileRefused(t("file.large", { name: file.name, size: sizeOf(file.size), context }));
  }
  const text = decoded(new Uint8Array(await file.arrayBuffer()));
  if (text === null) throw new FileRefused(t("file.binary", { name: file.name }));
  const tokens = await tokensOf(text, card);
  if (used + tokens >= context) throw new FileRefused(t("file.tokens", { name: file.name, tokens: used + tokens, context }));
  return { name: file.name, text, tokens };
}

/** The text of the bytes, or null if they are not text. */
function decoded(bytes) {
  const [first, second] = bytes;
  const encoding = first === 0xff && second === 0xfe ? "utf-16le" : first === 0xfe && second === 0xff ? "utf-16be" : "utf-8";
  if (encoding === "utf-8" && bytes.includes(0)) return null;
  try {
    return new TextDecoder(encoding, { fatal: true }).decode(bytes).replaceAll("\r\n", "\n");
  } catch {
    return null;
  }
}

async function tokensOf(text, card) {
  if (!COUNTING.includes(card?.runtime)) return estimate(text);
  try {
    return (await post("/tokenize", { model: card.id, content: text })).count;
  } catch {
    return estimate(text);
  }
}

function estimate(text) {
  return Math.ceil(text.length / CHARACTERS_OF_TOKEN);
}

function sizeOf(bytes) {
  return bytes < 1e6 ? `${formatNumber(Math.ceil(bytes / 1e3))} kB` : `${formatNumber(bytes / 1e6, 1)} MB`;
}
