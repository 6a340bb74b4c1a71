/** The nouns of a chat. Messages are a tree: an edited question or another reply is a sibling, never a loss. */

export type Role = "user" | "assistant" | "tool";

export interface ToolCall {
  id: string;
  name: string;
  /** JSON as the model wrote it, possibly not yet whole. */
  arguments: string;
}

export interface Failure {
  message: string;
  code?: string | null;
  status?: number;
}

/** Times in milliseconds; counts as the server told them, or counted afterwards for a reply that was stopped. */
export interface Stats {
  promptTokens?: number;
  completionTokens?: number;
  firstTokenMs?: number;
  decodeMs?: number;
}

export interface Message {
  id: string;
  parent: string | null;
  role: Role;
  text: string;
  created: number;
  toolCalls?: ToolCall[];
  /** Of a tool's result: the call it answers. */
  toolCallId?: string;
  model?: string;
  /** What ended the reply: the server's finish_reason, or "stopped" by the person. None: it never ended. */
  finish?: string;
  failure?: Failure;
  stats?: Stats;
}

export type ParameterName =
  | "temperature"
  | "top_p"
  | "top_k"
  | "min_p"
  | "max_tokens"
  | "repetition_penalty"
  | "presence_penalty"
  | "frequency_penalty"
  | "seed";

/** Only what differs from the checkpoint's own values. */
export type Parameters = { [name in ParameterName]?: number } & { stop?: string[] };

/** What is asked beside the messages. */
export interface Setup {
  /** null: the checkpoint's own system prompt. */
  system: string | null;
  parameters: Parameters;
  /** Tool definitions, the text as typed: JSON, or empty. */
  tools: string;
}

export interface Conversation extends Setup {
  id: string;
  title: string;
  /** Whether a person gave the title. */
  renamed: boolean;
  created: number;
  updated: number;
  messages: Record<string, Message>;
  /** Which child is shown below each message; "" is the top. */
  chosen: Record<string, string>;
}

export const EMPTY_SETUP: Setup = { system: null, parameters: {}, tools: "" };

export function newId(): string {
  // randomUUID exists in secure contexts only, and a server on a local network is none.
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(setup: Setup): Conversation {
  const now = Date.now();
  return {
    ...structuredClone(setup),
    id: newId(),
    title: "",
    renamed: false,
    created: now,
    updated: now,
    messages: {},
    chosen: {},
  };
}
