/** The interface's words, in the language that is chosen now. */

import { language, type Language } from "../store/preferences";
import en from "./en.json";
import zh from "./zh.json";

export type Word = keyof typeof en;
const TABLES: Record<Language, Record<Word, string>> = { en, zh };

/** The words of `name`, its {places} filled. Reading it in a component redraws that with the language. */
export function t(name: Word, places: Record<string, string | number> = {}): string {
  return TABLES[language.value][name].replace(/\{(\w+)\}/g, (_, place: string) => String(places[place] ?? ""));
}

export function formatNumber(value: number, digits = 0): string {
  return value.toLocaleString(language.value, { maximumFractionDigits: digits, minimumFractionDigits: digits });
}
