// The official SDK against the gateway at the base URL in the first argument; prints the results as one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const model = "smollm2";
const messages = [{ role: "user", content: "What is the capital of France?" }];
const seen = {};

seen.models = (await client.models.list()).data.map((card) => card.id);

const whole = await client.chat.completions.create({ model, messages, temperature: 0 });
seen.whole = { text: whole.choices[0].message.content, finish: whole.choices[0].finish_reason, usage: whole.usage.total_tokens };

const stream = await client.chat.completions.create({
  model, messages, temperature: 0, stream: true, stream_options: { include_usage: true },
});
seen.stream = { text: "", finish: null, usage: null };
for await (const chunk of stream) {
  seen.stream.text += chunk.choices[0]?.delta.content ?? "";
  seen.stream.finish = chunk.choices[0]?.finish_reason ?? seen.stream.finish;
  seen.stream.usage = chunk.usage?.total_tokens ?? seen.stream.usage;
}

const parameters = {
  type: "object",
  properties: { unit: { type: "string", enum: ["celsius", "fahrenheit"] } },
  required: ["unit"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", description: "The weather", parameters } }];
const called = await client.chat.completions.create({
  model, messages, tools, tool_choice: "required", parallel_tool_calls: false, temperature: 0,
});
const [call] = called.choices[0].message.tool_calls;
seen.tool = { name: call.function.name, arguments: JSON.parse(call.function.arguments), finish: called.choices[0].finish_reason };

const schema = {
  type: "object",
  properties: { capital: { type: "string", maxLength: 20 }, in_europe: { type: "boolean" } },
  required: ["capital", "in_europe"],
  additionalProperties: false,
};
const structured = await client.chat.completions.create({
  model, messages, temperature: 0,
  response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema } },
});
seen.structured = JSON.parse(structured.choices[0].message.content);

async function failure(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}
seen.unknown = await failure(client.chat.completions.create({ model: "unknown-model", messages }));
seen.vector = (await client.embeddings.create({ model: "vectors", input: "x" })).data[0].embedding;
seen.embeddings = await failure(client.embeddings.create({ model, input: "x" }));

const long = await client.chat.completions.create({ model, messages, max_tokens: 4000, ignore_eos: true, stream: true });
seen.aborted = { pieces: 0 };
for await (const chunk of long) {
  seen.aborted.pieces += 1;
  if (seen.aborted.pieces === 3) long.controller.abort();
}
seen.aborted.signal = long.controller.signal.aborted;

console.log(JSON.stringify(seen));
