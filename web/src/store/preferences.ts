/** What a person prefers in this browser: looks, language, and what new chats begin with. */

import { effect, signal } from "@preact/signals";
import { EMPTY_SETUP, type Setup } from "../chat/conversation";

export type Theme = "system" | "light" | "dark";
export type Language = "en" | "zh";

const PLACE = "qwenkit-preferences";
const kept = read();

export const theme = signal<Theme>(one(kept.theme, ["system", "light", "dark"], "system"));
export const language = signal<Language>(one(kept.language, ["en", "zh"], browsersLanguage()));
export const setupOfNew = signal<Setup>({ ...EMPTY_SETUP, ...(kept.setup as Partial<Setup> | undefined) });
/** The name to ask for; empty: the server's first. */
export const model = signal(typeof kept.model === "string" ? kept.model : "");

effect(() => {
  const values = { theme: theme.value, language: language.value, setup: setupOfNew.value, model: model.value };
  try {
    localStorage.setItem(PLACE, JSON.stringify(values));
  } catch {
    // Storage is closed to us: preferences last as long as the page.
  }
});

effect(() => {
  const root = document.documentElement;
  if (theme.value === "system") delete root.dataset.theme;
  else root.dataset.theme = theme.value;
});

effect(() => {
  document.documentElement.lang = language.value === "zh" ? "zh-Hans" : "en";
});

function read(): Record<string, unknown> {
  try {
    return (JSON.parse(localStorage.getItem(PLACE) ?? "{}") ?? {}) as Record<string, unknown>;
  } catch {
    return {};
  }
}

function one<T extends string>(value: unknown, allowed: T[], otherwise: T): T {
  return allowed.includes(value as T) ? (value as T) : otherwise;
}

function browsersLanguage(): Language {
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}
