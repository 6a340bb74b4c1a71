/** The tree of a conversation's messages. Pure: every change returns a new conversation. */

import type { Conversation, Message } from "./conversation";

const TOP = "";
const TITLE_LENGTH = 60;

/** The messages after `parent` (null: the first ones), oldest first. */
export function children(conversation: Conversation, parent: string | null): Message[] {
  return Object.values(conversation.messages)
    .filter((message) => message.parent === parent)
    .sort((a, b) => a.created - b.created);
}

/** What is shown: from the top down along the chosen branches. */
export function path(conversation: Conversation): Message[] {
  const found: Message[] = [];
  const below = new Map<string | null, Message[]>();
  for (const message of Object.values(conversation.messages)) {
    const group = below.get(message.parent);
    if (group) group.push(message);
    else below.set(message.parent, [message]);
  }
  for (let parent: string | null = null; ; ) {
    const group: Message[] | undefined = below.get(parent)?.sort((a, b) => a.created - b.created);
    if (!group) return found;
    const wanted = conversation.chosen[parent ?? TOP];
    const next: Message = group.find((message) => message.id === wanted) ?? group[group.length - 1]!;
    found.push(next);
    parent = next.id;
  }
}

/** The path's part before `id`. */
export function before(conversation: Conversation, id: string): Message[] {
  const found: Message[] = [];
  let at = conversation.messages[id]?.parent ?? null;
  while (at !== null) {
    const message: Message | undefined = conversation.messages[at];
    if (!message) break;
    found.unshift(message);
    at = message.parent;
  }
  return found;
}

/** Add a message and show it. */
export function add(conversation: Conversation, message: Message): Conversation {
  const messages = { ...conversation.messages, [message.id]: message };
  const chosen = { ...conversation.chosen, [message.parent ?? TOP]: message.id };
  return { ...conversation, messages, chosen, updated: Date.now() };
}

export function change(conversation: Conversation, id: string, values: Partial<Message>): Conversation {
  const message = conversation.messages[id];
  if (!message) return conversation;
  return { ...conversation, messages: { ...conversation.messages, [id]: { ...message, ...values } } };
}

/** Take a message and all below it away; a sibling is shown instead. */
export function remove(conversation: Conversation, id: string): Conversation {
  const parent = conversation.messages[id]?.parent ?? null;
  const messages = { ...conversation.messages };
  const chosen = { ...conversation.chosen };
  const left = [id];
  for (let one = left.pop(); one !== undefined; one = left.pop()) {
    left.push(...children(conversation, one).map((child) => child.id));
    delete messages[one];
    delete chosen[one];
  }
  if (chosen[parent ?? TOP] === id) delete chosen[parent ?? TOP];
  return { ...conversation, messages, chosen };
}

/** Show the sibling of `id` that is `step` places further. */
export function turn(conversation: Conversation, id: string, step: number): Conversation {
  const { place, all } = siblings(conversation, id);
  const next = all[place + step];
  if (!next) return conversation;
  return { ...conversation, chosen: { ...conversation.chosen, [next.parent ?? TOP]: next.id } };
}

export function siblings(conversation: Conversation, id: string): { place: number; all: Message[] } {
  const all = children(conversation, conversation.messages[id]?.parent ?? null);
  return { place: all.findIndex((message) => message.id === id), all };
}

/** What to call a conversation by its first words. */
export function titleOf(text: string): string {
  const line = text.trim().split("\n", 1)[0]!.replace(/\s+/g, " ");
  const characters = Array.from(line);
  return characters.length <= TITLE_LENGTH ? line : characters.slice(0, TITLE_LENGTH - 1).join("").trimEnd() + "…";
}
