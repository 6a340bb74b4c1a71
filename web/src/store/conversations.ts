/** All conversations, the one that is shown, and keeping them: every change is written soon after. */

import { batch, computed, signal } from "@preact/signals";
import type { Conversation } from "../chat/conversation";
import { newConversation } from "../chat/conversation";
import * as database from "./database";
import { setupOfNew } from "./preferences";
import { leave, pickUp } from "./rescue";

const WRITE_AFTER_MS = 400;

export const conversations = signal<ReadonlyMap<string, Conversation>>(new Map());
/** A conversation without a message is kept nowhere: it is the page's blank sheet. */
const blank = signal(newConversation(setupOfNew.value));
const shownId = signal<string | null>(null);

export const shown = computed(() => conversations.value.get(shownId.value ?? "") ?? blank.value);
/** Newest first. */
export const ordered = computed(() => [...conversations.value.values()].sort((a, b) => b.updated - a.updated));
export const loaded = signal(false);
/** Why nothing is kept, when it is so. */
export const notKept = signal(false);

const others = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("qwenkit-conversations");
const waiting = new Set<string>();
const writing = new Set<string>();
let timer: ReturnType<typeof setTimeout> | undefined;
let written = -WRITE_AFTER_MS;

export function find(id: string): Conversation | undefined {
  return conversations.value.get(id) ?? (blank.value.id === id ? blank.value : undefined);
}

export function show(id: string): void {
  shownId.value = id;
  location.replace(`#${id}`);
}

export function startNew(): void {
  batch(() => {
    if (!conversations.value.has(blank.value.id)) blank.value = newConversation(setupOfNew.value);
    shownId.value = null;
  });
  history.replaceState(null, "", location.pathname + location.search);
}

/** Change a conversation. A blank one that gets a message takes its place in the list. */
export function update(id: string, how: (conversation: Conversation) => Conversation): void {
  const old = find(id);
  if (!old) return; // deleted meanwhile
  const changed = how(old);
  if (changed === old) return;
  if (!conversations.value.has(id) && Object.keys(changed.messages).length === 0) {
    blank.value = changed;
    return;
  }
  batch(() => {
    if (id === blank.value.id) {
      blank.value = newConversation(setupOfNew.value);
      show(id);
    }
    conversations.value = new Map(conversations.value).set(id, changed);
  });
  writeSoon(id);
}

export function remove(id: string): void {
  const left = new Map(conversations.value);
  left.delete(id);
  conversations.value = left;
  if (shownId.value === id) startNew();
  writeSoon(id);
}

/** Put conversations there as they are: brought back, or from a file. */
export function restore(some: Conversation[]): void {
  const all = new Map(conversations.value);
  for (const one of some) all.set(one.id, one);
  conversations.value = all;
  for (const one of some) writeSoon(one.id);
}

export async function load(): Promise<void> {
  try {
    const found = new Map((await database.all()).map((one) => [one.id, one]));
    for (const [id, one] of Object.entries(pickUp())) {
      if (one) found.set(id, one);
      else found.delete(id);
      waiting.add(id);
    }
    conversations.value = found;
    if (waiting.size) void writeNow();
  } catch {
    notKept.value = true;
  }
  const wanted = location.hash.slice(1);
  if (conversations.value.has(wanted)) shownId.value = wanted;
  loaded.value = true;
}

/** At once, but not oftener than a growing reply is worth. */
function writeSoon(id: string): void {
  waiting.add(id);
  timer ??= setTimeout(() => void writeNow(), written + WRITE_AFTER_MS - performance.now());
}

export async function writeNow(): Promise<void> {
  clearTimeout(timer);
  timer = undefined;
  written = performance.now();
  const ids = [...waiting];
  waiting.clear();
  for (const id of ids) writing.add(id);
  try {
    await Promise.all(
      ids.map((id) => {
        const conversation = conversations.value.get(id);
        return conversation ? database.put(conversation) : database.remove(id);
      }),
    );
    for (const id of ids) others?.postMessage(id);
  } catch {
    notKept.value = true;
  }
  for (const id of ids) writing.delete(id);
}

// Another tab's change shows here too; what this tab is about to write wins.
others?.addEventListener("message", (event: MessageEvent<string>) => {
  const id = event.data;
  if (waiting.has(id)) return;
  void database.get(id).then((found) => {
    const all = new Map(conversations.value);
    if (found) all.set(id, found);
    else all.delete(id);
    conversations.value = all;
  });
});

addEventListener("pagehide", () => {
  leave(Object.fromEntries([...waiting, ...writing].map((id) => [id, conversations.value.get(id) ?? null])));
});
