// The official `openai` client for Node: chat, streams, parsed answers, tools, responses, completions, errors.
// node scripts/clients/openai_node.mjs http://HOST:PORT [http://HOST:PORT of one with a key]
// Its packages are found from where NODE_MODULES points to: they are installed outside the sources.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.env.NODE_MODULES ?? "node_modules"}/`));
const { OpenAI, BadRequestError, NotFoundError, AuthenticationError } = require("openai");
const { zodFunction, zodResponseFormat, zodTextFormat } = require("openai/helpers/zod");
const { ResponsesToolRunner } = require("openai/helpers/responses-tool-runner");
const { VERSION } = require("openai/version");
const { z } = require("zod");

const [url, keyed] = process.argv.slice(2).map((url) => url.replace(/\/$/, ""));
assert(url, "usage: openai_node.mjs http://HOST:PORT [http://HOST:PORT of one with a key]");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });

// What the demo was trained on; see crates/strait/demo/TRAINING.md.
const SUM = "What is 12 + 30?";
const WEATHER = "What is the weather in Quito right now.";
const RESULT = '{"city": "Quito", "temp_c": 25}';
const Sale = z.object({ animal: z.string(), price: z.number().int() });
const chat = (content) => ({ model: "demo", temperature: 0, messages: [{ role: "user", content }] });
const response = (input) => ({ model: "demo", temperature: 0, input });
const sale = [chat, response].map((request) => request("JSON: animal goat, price 973"));
const goat = { animal: "goat", price: 973 };

function weather() {
  const calls = [];
  const execute = (city) => (calls.push(city), RESULT);
  return { calls, execute };
}

const flows = {
  "models: list and retrieve": async () => {
    assert.deepEqual((await client.models.list()).data.map((model) => model.id), ["demo"]);
    assert.equal((await client.models.retrieve("demo")).id, "demo");
  },
  "chat: streamed text = whole text, usage last": async () => {
    const whole = await client.chat.completions.create(chat(SUM));
    const stream = await client.chat.completions.create({ ...chat(SUM), stream: true, stream_options: { include_usage: true } });
    let text = "";
    let usage;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, "12 + 30 = 42");
    assert.equal(whole.choices[0].message.content, text);
    assert.equal(usage.total_tokens, whole.usage.total_tokens);
  },
  "chat.parse, chat.stream: a zod schema": async () => {
    const asked = { ...sale[0], response_format: zodResponseFormat(Sale, "sale") };
    assert.deepEqual((await client.chat.completions.parse(asked)).choices[0].message.parsed, goat);
    const stream = client.chat.completions.stream(asked);
    let text = "";
    stream.on("content.delta", (event) => (text += event.delta));
    assert.deepEqual((await stream.finalChatCompletion()).choices[0].message.parsed, goat);
    assert.deepEqual(JSON.parse(text), goat);
  },
  "chat: tool_choice required, named and none": async () => {
    const tools = [zodFunction({ name: "get_weather", parameters: z.object({ city: z.string() }) })];
    for (const tool_choice of ["required", { type: "function", function: { name: "get_weather" } }]) {
      const answer = await client.chat.completions.parse({ ...chat(WEATHER), tools, tool_choice });
      assert.deepEqual(answer.choices[0].message.tool_calls[0].function.parsed_arguments, { city: "Quito" });
    }
    const answer = await client.chat.completions.create({ ...chat(WEATHER), tools, tool_choice: "none" });
    assert.equal(answer.choices[0].message.tool_calls, undefined);
  },
  "chat.runTools: calls the function and answers with its result, whole and streamed": async () => {
    for (const stream of [false, true]) {
      const { calls, execute } = weather();
      const parameters = z.object({ city: z.string() });
      const tool = zodFunction({ name: "get_weather", parameters, function: ({ city }) => execute(city) });
      const runner = client.chat.completions.runTools({ ...chat(WEATHER), tools: [tool], stream });
      assert.match(await runner.finalContent(), /25/);
      assert.deepEqual(calls, ["Quito"]);
    }
  },
  "responses: whole, parsed, streamed": async () => {
    assert.equal((await client.responses.create(response(SUM))).output_text, "12 + 30 = 42");
    const asked = { ...sale[1], text: { format: zodTextFormat(Sale, "sale") } };
    assert.deepEqual((await client.responses.parse(asked)).output_parsed, goat);
    const stream = client.responses.stream(asked);
    let text = "";
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    assert.deepEqual((await stream.finalResponse()).output_parsed, goat);
    assert.deepEqual(JSON.parse(text), goat);
  },
  "ResponsesToolRunner: calls the function and answers with its result": async () => {
    const { calls, execute } = weather();
    const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
    const tool = { type: "function", name: "get_weather", strict: true, parameters };
    const runner = new ResponsesToolRunner({ functions: [{ tool, execute: ({ city }) => execute(city) }] });
    const answer = await runner.run(client, response(WEATHER));
    assert.match(answer.output_text, /25/);
    assert.deepEqual(calls, ["Quito"]);
  },
  "completions: echo and logprobs score a prompt": async () => {
    const asked = { model: "demo", prompt: "What is 12", max_tokens: 0, echo: true, logprobs: 1 };
    const [choice] = (await client.completions.create(asked)).choices;
    assert.equal(choice.text, "What is 12");
    assert.equal(choice.logprobs.token_logprobs[0], null);
    assert(choice.logprobs.token_logprobs.slice(1).every((value) => value < 0));
  },
  "errors: BadRequestError, NotFoundError, AuthenticationError": async () => {
    const is = (kind, param) => (error) => error instanceof kind && error.param === param;
    await assert.rejects(client.chat.completions.create({ ...chat(SUM), temperature: -1 }), is(BadRequestError, "temperature"));
    await assert.rejects(client.chat.completions.create({ ...chat(SUM), model: "none-such" }), is(NotFoundError, "model"));
    await assert.rejects(client.embeddings.create({ model: "demo", input: "words" }), is(NotFoundError, null));
    if (!keyed) return;
    const wrong = new OpenAI({ baseURL: `${keyed}/v1`, apiKey: "wrong", maxRetries: 0 });
    await assert.rejects(wrong.models.list(), is(AuthenticationError, null));
  },
};

for (const [name, flow] of Object.entries(flows)) {
  let said = "ok";
  try {
    await flow();
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
    said = `**failed**: ${error.name}`;
  }
  console.log(`| openai (Node) | ${VERSION} | ${name} | ${said} |`);
}
