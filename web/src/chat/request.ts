/** From a conversation to the body of a request. */

import type { Message, Setup } from "./conversation";

export interface WireToolCall {
  id: string;
  type: "function";
  function: { name: string; arguments: string };
}

export interface WireMessage {
  role: "system" | "user" | "assistant" | "tool";
  content: string | null;
  tool_calls?: WireToolCall[];
  tool_call_id?: string;
}

/** The messages as the API takes them; failed replies without a word are left out. */
export function wireMessages(setup: Setup, messages: Message[]): WireMessage[] {
  const found: WireMessage[] = [];
  if (setup.system !== null) found.push({ role: "system", content: setup.system });
  for (const message of messages) {
    if (message.role === "tool") {
      found.push({ role: "tool", tool_call_id: message.toolCallId ?? "", content: message.text });
    } else if (message.role === "assistant" && message.toolCalls?.length) {
      found.push({
        role: "assistant",
        content: message.text || null,
        tool_calls: message.toolCalls.map((call) => ({
          id: call.id,
          type: "function",
          function: { name: call.name, arguments: call.arguments },
        })),
      });
    } else {
      found.push({ role: message.role, content: message.text });
    }
  }
  return found;
}

/** The fields of sampling that differ from the checkpoint's. */
export function wireParameters(setup: Setup): Record<string, unknown> {
  const { stop, ...numbers } = setup.parameters;
  const given = Object.entries(numbers).filter(([, value]) => value !== undefined);
  return { ...Object.fromEntries(given), ...(stop?.length ? { stop } : {}) };
}

/** The tools, if there are any. Throws an Error as `readTools`. */
export function wireTools(setup: Setup): { tools?: unknown[] } {
  const tools = readTools(setup.tools);
  return tools.length ? { tools } : {};
}

/** Tool definitions out of what was typed. Throws an Error in words for people who read JSON. */
export function readTools(typed: string): unknown[] {
  if (!typed.trim()) return [];
  const parsed: unknown = JSON.parse(typed);
  const list = Array.isArray(parsed) ? parsed : [parsed];
  return list.map((tool: unknown, i) => {
    if (typeof tool !== "object" || tool === null) throw new Error(`[${i}]: {…}?`);
    const whole = "function" in tool ? tool : { type: "function", function: tool };
    const { function: definition } = whole as { function: unknown };
    if (typeof (definition as { name?: unknown } | null)?.name !== "string") throw new Error(`[${i}].function.name: "…"?`);
    return whole;
  });
}
