// One question with one tool, through the OpenAI Agents SDK; prints what came of it as JSON.
// Arguments: address, model, "responses" or "chat", "stream" or "whole".
import { Agent, OpenAIProvider, Runner, tool } from "@openai/agents";
import { z } from "zod";

const [baseURL, model, api, how] = process.argv.slice(2);
const calls = [];
const weather = tool({
  name: "get_weather",
  description: "The weather of a city.",
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => {
    calls.push(city);
    return `sunny in ${city}`;
  },
});
const agent = new Agent({ name: "Weather", instructions: "Be brief.", model, tools: [weather] });
const modelProvider = new OpenAIProvider({ baseURL, apiKey: "none", useResponses: api === "responses" });
const runner = new Runner({ modelProvider, tracingDisabled: true });

const result = await runner.run(agent, "What is the weather in Rome?", { stream: how === "stream" });
let streamed = null;
if (how === "stream") {
  streamed = "";
  for await (const text of result.toTextStream()) streamed += text;
  await result.completed;
}
const usage = result.rawResponses.map((response) => response.usage);
const items = result.newItems.map((item) => item.type);
console.log(JSON.stringify({ calls, items, output: result.finalOutput, streamed, usage }));
