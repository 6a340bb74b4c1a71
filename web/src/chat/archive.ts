/** Conversations to a file and back. A file is anybody's word: it is checked field by field. */

import type { Conversation, Failure, Message, ParameterName, Parameters, Stats, ToolCall } from "./conversation";
import { newId } from "./conversation";

const FORMAT = "qwenkit-conversations";
const NUMBERS: ParameterName[] = [
  "temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty", "presence_penalty",
  "frequency_penalty", "seed",
];
type Fields = Record<string, unknown>;

export function toFile(conversations: Conversation[]): string {
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/** The conversations of a file, each with a new id. Throws an Error that names the first thing wrong. */
export function fromFile(text: string): Conversation[] {
  const file = fields(JSON.parse(text), "file");
  if (file.format !== FORMAT || file.version !== 1) throw new Error(`format: "${FORMAT}", version: 1?`);
  return list(file.conversations, "conversations").map((one, i) => readConversation(one, `conversations[${i}]`));
}

function readConversation(value: unknown, at: string): Conversation {
  const from = fields(value, at);
  const messages: Record<string, Message> = Object.create(null);
  for (const [id, message] of Object.entries(fields(from.messages, `${at}.messages`))) {
    messages[id] = { ...readMessage(message, `${at}.messages.${id}`), id };
  }
  for (const message of Object.values(messages)) {
    if (message.parent !== null && !messages[message.parent]) throw new Error(`${at}.messages.${message.id}.parent?`);
    if (cyclic(messages, message)) throw new Error(`${at}.messages.${message.id}: cycle`);
  }
  const chosen: Record<string, string> = Object.create(null);
  for (const [parent, child] of Object.entries(fields(from.chosen, `${at}.chosen`))) {
    chosen[parent] = string(child, `${at}.chosen.${parent}`);
  }
  return {
    id: newId(),
    title: string(from.title, `${at}.title`),
    renamed: from.renamed === true,
    created: number(from.created, `${at}.created`),
    updated: number(from.updated, `${at}.updated`),
    system: from.system === null ? null : string(from.system, `${at}.system`),
    parameters: readParameters(from.parameters, `${at}.parameters`),
    tools: string(from.tools, `${at}.tools`),
    messages,
    chosen,
  };
}

function readMessage(value: unknown, at: string): Omit<Message, "id"> {
  const from = fields(value, at);
  const role = from.role;
  if (role !== "user" && role !== "assistant" && role !== "tool") throw new Error(`${at}.role?`);
  const message: Omit<Message, "id"> = {
    parent: from.parent === null ? null : string(from.parent, `${at}.parent`),
    role,
    text: string(from.text, `${at}.text`),
    created: number(from.created, `${at}.created`),
  };
  if (from.toolCalls !== undefined) {
    message.toolCalls = list(from.toolCalls, `${at}.toolCalls`).map((call, i) => readCall(call, `${at}.toolCalls[${i}]`));
  }
  for (const name of ["toolCallId", "model", "finish"] as const) {
    if (from[name] !== undefined) message[name] = string(from[name], `${at}.${name}`);
  }
  if (from.failure !== undefined) {
    const failure: Failure = { message: string(fields(from.failure, `${at}.failure`).message, `${at}.failure.message`) };
    message.failure = failure;
  }
  if (from.stats !== undefined) message.stats = readStats(from.stats, `${at}.stats`);
  return message;
}

function readCall(value: unknown, at: string): ToolCall {
  const from = fields(value, at);
  return {
    id: string(from.id, `${at}.id`),
    name: string(from.name, `${at}.name`),
    arguments: string(from.arguments, `${at}.arguments`),
  };
}

function readStats(value: unknown, at: string): Stats {
  const from = fields(value, at);
  const stats: Stats = {};
  for (const name of ["promptTokens", "completionTokens", "firstTokenMs", "decodeMs"] as const) {
    if (from[name] !== undefined) stats[name] = number(from[name], `${at}.${name}`);
  }
  return stats;
}

function readParameters(value: unknown, at: string): Parameters {
  const from = fields(value, at);
  const found: Parameters = {};
  for (const name of NUMBERS) if (from[name] !== undefined) found[name] = number(from[name], `${at}.${name}`);
  if (from.stop !== undefined) found.stop = list(from.stop, `${at}.stop`).map((one) => string(one, `${at}.stop`));
  return found;
}

function cyclic(messages: Record<string, Message>, from: Message): boolean {
  let steps = 0;
  const most = Object.keys(messages).length;
  for (let at: string | null = from.parent; at !== null; at = messages[at]?.parent ?? null) {
    if (++steps > most) return true;
  }
  return false;
}

function fields(value: unknown, at: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error(`${at}: {…}?`);
  return value as Fields;
}

function list(value: unknown, at: string): unknown[] {
  if (!Array.isArray(value)) throw new Error(`${at}: […]?`);
  return value;
}

function string(value: unknown, at: string): string {
  if (typeof value !== "string") throw new Error(`${at}: "…"?`);
  return value;
}

function number(value: unknown, at: string): number {
  if (typeof value !== "number" || !Number.isFinite(value)) throw new Error(`${at}: 0?`);
  return value;
}
