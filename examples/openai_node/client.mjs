// openai-node as it comes: models, chat whole and streamed, tools, embeddings, and an error with its type.
//
// Start a server first: qwenkit serve
// usage: cd examples/openai_node && npm install && node client.mjs [URL]

import OpenAI from "openai";

const baseURL = process.argv[2] ?? "http://127.0.0.1:8000/v1";
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });

const models = await client.models.list();
const model = models.data[0].id;
console.log("model:", (await client.models.retrieve(model)).id);

const asked = {
  model,
  messages: [{ role: "user", content: "Name three colours." }],
  temperature: 0,
  max_tokens: 40,
};
const whole = await client.chat.completions.create(asked);
console.log("whole:", JSON.stringify(whole.choices[0].message.content));

let pieces = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true }))
  pieces += chunk.choices[0].delta.content ?? "";
console.log("streamed:", JSON.stringify(pieces));

const pieceCount = {
  type: "function",
  function: {
    name: "pieces_in_stock",
    description: "How many pieces of an article are in stock.",
    parameters: {
      type: "object",
      properties: { article: { type: "string", enum: ["lamp", "chair", "table"] } },
      required: ["article"],
    },
  },
};

// A call that is demanded, put together from its pieces by the client.
const forced = client.chat.completions.stream({
  ...asked,
  max_tokens: 400,
  tools: [pieceCount],
  tool_choice: "required",
  parallel_tool_calls: false,
});
forced.on("tool_calls.function.arguments.done", (call) =>
  console.log("call:", call.name, JSON.stringify(call.parsed_arguments ?? JSON.parse(call.arguments))),
);
console.log("finished:", (await forced.finalChatCompletion()).choices[0].finish_reason);

// A round by the client's runner, which makes the call and keeps its result. The answer is asked for without tools:
// small models like to make the same call for ever.
const runner = client.chat.completions.runTools({
  ...asked,
  messages: [{ role: "user", content: "How many lamps are in stock?" }],
  max_tokens: 400,
  stream: true,
  tool_choice: { type: "function", function: { name: "pieces_in_stock" } },
  tools: [
    {
      type: "function",
      function: { ...pieceCount.function, function: (text) => ({ ...JSON.parse(text), pieces: 7 }) },
    },
  ],
});
console.log("runner returns:", await runner.finalFunctionToolCallResult());
const messages = [...runner.messages, { role: "user", content: "Say that in a sentence." }];
const answer = await client.chat.completions.create({ ...asked, messages });
console.log("answer:", JSON.stringify(answer.choices[0].message.content));

const vectors = await client.embeddings.create({ model, input: ["a lamp", "two lamps", "rain"] });
const [lamp, lamps, rain] = vectors.data.map((one) => one.embedding);
const alike = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
console.log("embeddings:", lamp.length, alike(lamp, lamps).toFixed(4), alike(lamp, rain).toFixed(4));

try {
  await client.chat.completions.create({ ...asked, temperature: -1 });
} catch (error) {
  if (!(error instanceof OpenAI.BadRequestError)) throw error;
  console.log("error:", error.constructor.name, error.status, error.code, error.param, error.message);
}
