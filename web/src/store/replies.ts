/** Replies in progress, one a conversation: asking, writing down what comes, stopping, going on. */

import { signal } from "@preact/signals";
import { ApiError } from "../api/http";
import { chat, goOn, type CallPiece, type Piece } from "../api/replies";
import { tokenize } from "../api/server";
import { newId, type Message, type Stats, type ToolCall } from "../chat/conversation";
import { wireMessages, wireParameters, wireTools } from "../chat/request";
import * as tree from "../chat/tree";
import { find, update, writeNow } from "./conversations";
import { ask } from "./key";
import { current, look } from "./server";

const SHOW_EVERY_MS = 40;

export interface Running {
  message: string;
  began: number;
  /** Pieces so far, about as many as tokens, and when the first came. */
  pieces: number;
  first: number | null;
  stop: () => void;
}

/** By conversation. */
export const running = signal<Record<string, Running>>({});

/** Say something after the message `parent` and ask for the reply. */
export function say(conversation: string, parent: string | null, text: string): void {
  if (running.value[conversation]) return;
  const id = newId();
  update(conversation, (old) => ({
    ...tree.add(old, { id, parent, role: "user", text, created: Date.now() }),
    title: old.title || tree.titleOf(text),
  }));
  reply(conversation, id);
}

/** Enter the results of tool calls, in order, and ask how the model goes on. */
export function answerCalls(conversation: string, caller: string, results: { call: string; text: string }[]): void {
  let parent = caller;
  for (const { call, text } of results) {
    const id = newId();
    const message: Message = { id, parent, role: "tool", text, toolCallId: call, created: Date.now() };
    update(conversation, (old) => tree.add(old, message));
    parent = id;
  }
  reply(conversation, parent);
}

/** A new reply after the message `parent`, beside those it already has. */
export function reply(conversation: string, parent: string): void {
  if (running.value[conversation]) return;
  const id = newId();
  update(conversation, (old) => tree.add(old, { id, parent, role: "assistant", text: "", created: Date.now() }));
  const asked = find(conversation);
  if (!asked) return;
  const messages = wireMessages(asked, tree.before(asked, id));
  const again = () => {
    update(conversation, (old) => tree.remove(old, id));
    reply(conversation, parent);
  };
  void run(conversation, id, again, (signal) => {
    return chat({ model: current.value?.id, messages, ...wireParameters(asked), ...wireTools(asked) }, signal);
  });
}

/** Ask again for a reply: beside the old one if that has words, else in its place. */
export function regenerate(conversation: string, id: string): void {
  const message = find(conversation)?.messages[id];
  if (!message || message.parent === null) return;
  if (!message.text && !message.toolCalls?.length) update(conversation, (old) => tree.remove(old, id));
  reply(conversation, message.parent);
}

/** Go on with a reply that was cut short. */
export function resume(conversation: string, id: string): void {
  const asked = find(conversation);
  const message = asked?.messages[id];
  if (!asked || !message || running.value[conversation]) return;
  const messages = wireMessages(asked, tree.before(asked, id));
  void run(conversation, id, () => resume(conversation, id), (signal) =>
    goOn(messages, message.text, wireParameters(asked), current.value?.id, signal),
  );
}

export function stop(conversation: string): void {
  running.value[conversation]?.stop();
}

async function run(
  conversation: string,
  id: string,
  again: () => void,
  open: (signal: AbortSignal) => AsyncGenerator<Piece>,
): Promise<void> {
  const controller = new AbortController();
  const began = performance.now();
  const before = find(conversation)?.messages[id];
  const values: Partial<Message> = { text: before?.text ?? "", finish: undefined, failure: undefined };
  const stats: Stats = {};
  let pieces = 0;
  let first: number | null = null;
  let shownAt = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const show = () => {
    clearTimeout(timer);
    timer = undefined;
    shownAt = performance.now();
    running.value = {
      ...running.value,
      [conversation]: { message: id, began, pieces, first, stop: () => controller.abort() },
    };
    update(conversation, (old) => tree.change(old, id, { ...values }));
  };
  show();
  try {
    for await (const piece of open(controller.signal)) {
      if (piece.text || piece.calls) {
        first ??= performance.now();
        pieces += 1;
      }
      if (piece.text) values.text += piece.text;
      if (piece.calls) values.toolCalls = joined(values.toolCalls ?? [], piece.calls);
      if (piece.model) values.model = piece.model;
      if (piece.finish) values.finish = piece.finish;
      if (piece.usage) {
        stats.promptTokens = piece.usage.prompt_tokens;
        stats.completionTokens = piece.usage.completion_tokens;
      }
      if (performance.now() - shownAt >= SHOW_EVERY_MS) {
        show();
        await new Promise((resolve) => setTimeout(resolve)); // let the page paint and hear the person
      } else {
        timer ??= setTimeout(show, SHOW_EVERY_MS);
      }
    }
  } catch (error) {
    if (controller.signal.aborted) {
      values.finish = "stopped";
    } else {
      values.failure = failureOf(error);
    }
  }
  clearTimeout(timer);
  const end = performance.now();
  if (first !== null) {
    stats.firstTokenMs = first - began;
    stats.decodeMs = end - first;
  }
  values.stats = added(before?.stats, stats);
  update(conversation, (old) => ({ ...tree.change(old, id, values), updated: Date.now() }));
  const { [conversation]: _, ...left } = running.value;
  running.value = left;
  if (stats.completionTokens === undefined && values.text) void count(conversation, id);
  if (values.failure?.status === 401) ask(again);
  if (values.failure?.status === 503 || values.failure?.status === 0) void look();
  void writeNow();
}

/** Tool calls and what a piece adds to them. */
function joined(calls: ToolCall[], pieces: CallPiece[]): ToolCall[] {
  const found = [...calls];
  for (const piece of pieces) {
    const old = found[piece.index] ?? { id: "", name: "", arguments: "" };
    found[piece.index] = {
      id: piece.id ?? old.id,
      name: old.name + (piece.function?.name ?? ""),
      arguments: old.arguments + (piece.function?.arguments ?? ""),
    };
  }
  return found.filter(Boolean);
}

/** A reply that went on after a stop has the times of both parts; its prompt is the first one's. */
function added(old: Stats | undefined, more: Stats): Stats {
  if (!old?.completionTokens) return more;
  return {
    promptTokens: old.promptTokens ?? more.promptTokens,
    completionTokens:
      more.completionTokens === undefined ? undefined : old.completionTokens + more.completionTokens,
    firstTokenMs: old.firstTokenMs,
    decodeMs: (old.decodeMs ?? 0) + (more.decodeMs ?? 0),
  };
}

/** A reply that was cut short came without its counts: ask for them. */
async function count(conversation: string, id: string): Promise<void> {
  const asked = find(conversation);
  const message = asked?.messages[id];
  if (!asked || !message) return;
  try {
    const [prompt, completion] = await Promise.all([
      tokenize({ messages: wireMessages(asked, tree.before(asked, id)), ...wireTools(asked) }),
      tokenize({ prompt: message.text }),
    ]);
    const counts = { promptTokens: prompt.length, completionTokens: completion.length };
    update(conversation, (old) =>
      tree.change(old, id, { stats: { ...old.messages[id]?.stats, ...counts } }),
    );
  } catch {
    // Without counts the reply simply shows none.
  }
}

function failureOf(error: unknown): Message["failure"] {
  if (error instanceof ApiError) return { message: error.message, code: error.code, status: error.status };
  return { message: error instanceof Error ? error.message : String(error), code: "page" };
}
