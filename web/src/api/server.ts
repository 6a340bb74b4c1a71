/** The smaller questions to the server. */

import { send } from "./http";
import type { WireMessage } from "../chat/request";

export interface Model {
  id: string;
  /** Tokens of prompt and reply together; absent if the server does not say. */
  max_model_len?: number;
}

export async function models(): Promise<Model[]> {
  const answer = (await (await send("v1/models")).json()) as { data: Model[] };
  return answer.data;
}

/** The token ids of a text, or of messages with the template around them. */
export async function tokenize(
  what: { prompt: string; parse_special?: boolean } | { messages: WireMessage[]; tools?: unknown[] },
  signal?: AbortSignal,
): Promise<number[]> {
  const answer = (await (await send("tokenize", what, signal)).json()) as { tokens: number[] };
  return answer.tokens;
}
