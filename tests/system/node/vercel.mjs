// The Vercel AI SDK against the gateway at the base URL in the first argument; prints the results as one JSON object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const provider = createOpenAICompatible({
  name: "gateway", baseURL: process.argv[2], includeUsage: true, supportsStructuredOutputs: true,
});
const model = provider("smollm2");
const prompt = "What is the capital of France?";
const common = { model, prompt, temperature: 0, maxRetries: 0 };
const seen = {};

const whole = await generateText(common);
seen.whole = { text: whole.text, finish: whole.finishReason, usage: whole.usage.totalTokens };

const streamed = streamText(common);
seen.stream = { text: "" };
for await (const piece of streamed.textStream) seen.stream.text += piece;
seen.stream.finish = await streamed.finishReason;
seen.stream.usage = (await streamed.usage).totalTokens;

const schema = z.strictObject({ capital: z.string().max(20), in_europe: z.boolean() });
seen.structured = (await generateObject({ ...common, schema })).object;

const weather = tool({ description: "The weather", inputSchema: z.strictObject({ unit: z.enum(["celsius", "fahrenheit"]) }) });
const called = await generateText({
  ...common, tools: { get_weather: weather }, toolChoice: "required",
  providerOptions: { gateway: { parallel_tool_calls: false } },
});
const [call] = called.toolCalls;
seen.tool = { name: call.toolName, arguments: call.input, finish: called.finishReason };

try {
  await generateText({ ...common, model: provider("unknown-model") });
} catch (error) {
  seen.unknown = { kind: error.name, status: error.statusCode, message: error.message };
}

console.log(JSON.stringify(seen));
