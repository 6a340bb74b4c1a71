/** What was not yet written when the page was left. IndexedDB takes its time, and a page that goes has none:
 * localStorage writes at once and holds it until the next visit. */

import type { Conversation } from "../chat/conversation";

const PLACE = "qwenkit-unwritten";

/** By id; null: to be deleted. */
export type Unwritten = Record<string, Conversation | null>;

export function leave(unwritten: Unwritten): void {
  try {
    if (Object.keys(unwritten).length) localStorage.setItem(PLACE, JSON.stringify(unwritten));
  } catch {
    // No room or no storage: the last 400 ms are lost.
  }
}

export function pickUp(): Unwritten {
  try {
    const found = (JSON.parse(localStorage.getItem(PLACE) ?? "{}") ?? {}) as Unwritten;
    localStorage.removeItem(PLACE);
    return found;
  } catch {
    return {};
  }
}
