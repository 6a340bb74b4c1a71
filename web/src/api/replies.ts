/** A reply while it is written: chat completions, and going on with one that was cut short. */

import { events } from "./events";
import { ApiError, fromBody, send } from "./http";
import { tokenize } from "./server";
import type { WireMessage } from "../chat/request";

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
}

export interface CallPiece {
  index: number;
  id?: string;
  function?: { name?: string; arguments?: string };
}

/** What one event of the stream says. */
export interface Piece {
  text?: string;
  calls?: CallPiece[];
  finish?: string;
  usage?: Usage;
  model?: string;
}

interface Chunk {
  model?: string;
  usage?: Usage | null;
  choices?: {
    text?: string;
    delta?: { content?: string | null; tool_calls?: CallPiece[] };
    finish_reason?: string | null;
  }[];
}

/** The assistant's next turn. Throws ApiError; its code is "lost" when the connection was. */
export async function* chat(body: Record<string, unknown>, signal: AbortSignal): AsyncGenerator<Piece> {
  yield* read(await send("v1/chat/completions", asStream(body), signal), signal);
}

/** More of the turn that `soFar` began: the prompt is the conversation's tokens and those of its words. */
export async function* goOn(
  messages: WireMessage[],
  soFar: string,
  parameters: Record<string, unknown>,
  model: string | undefined,
  signal: AbortSignal,
): AsyncGenerator<Piece> {
  const [prompt, begun, end] = await Promise.all([
    tokenize({ messages }, signal),
    tokenize({ prompt: soFar }, signal),
    tokenize({ prompt: "<|im_end|>", parse_special: true }, signal),
  ]);
  const stops = end.length === 1 ? { stop_token_ids: end } : {};
  const body = { ...parameters, ...stops, model, prompt: [...prompt, ...begun] };
  yield* read(await send("v1/completions", asStream(body), signal), signal);
}

function asStream(body: Record<string, unknown>): Record<string, unknown> {
  return { ...body, stream: true, stream_options: { include_usage: true } };
}

async function* read(response: Response, signal: AbortSignal): AsyncGenerator<Piece> {
  try {
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data) as Chunk & { error?: unknown };
      if (chunk.error) throw fromBody(chunk, response.status);
      const choice = chunk.choices?.[0];
      yield {
        text: choice?.delta?.content ?? choice?.text ?? undefined,
        calls: choice?.delta?.tool_calls,
        finish: choice?.finish_reason ?? undefined,
        usage: chunk.usage ?? undefined,
        model: chunk.model,
      };
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw new ApiError("", 0, "lost");
  }
  throw new ApiError("", 0, "lost"); // it ended without [DONE]
}
