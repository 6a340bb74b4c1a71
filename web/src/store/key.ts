/** The API key, if the server wants one. It lives as long as the tab. */

import { signal } from "@preact/signals";

const PLACE = "qwenkit-key";

export const key = signal(read());
/** Whether the person is asked for a key now, and what to do again when it is there. */
export const asking = signal<null | { again: () => void; wrong: boolean }>(null);

export function keep(value: string): void {
  key.value = value;
  try {
    if (value) sessionStorage.setItem(PLACE, value);
    else sessionStorage.removeItem(PLACE);
  } catch {
    // Storage is closed to us: the key lives as long as the page.
  }
}

export function ask(again: () => void): void {
  asking.value = { again, wrong: key.value !== "" };
}

function read(): string {
  try {
    return sessionStorage.getItem(PLACE) ?? "";
  } catch {
    return "";
  }
}
