/** Colours for code. The highlighter comes when the first code does; until then code is plain. */

import { signal } from "@preact/signals";
import type { HLJSApi } from "highlight.js";
import { escape } from "./escape";

const MOST = 60_000; // characters; colouring more would hold up the page

const highlighter = signal<HLJSApi | null>(null);
let coming = false;

/** Changes when colours have come; what was drawn without them can be drawn again. */
export const coloured = highlighter;

/** The code as HTML. */
export function highlight(code: string, language: string): string {
  const found = highlighter.value;
  if (!found) {
    if (!coming) {
      coming = true;
      void import("./languages").then((module) => {
        highlighter.value = module.default;
      });
    }
    return escape(code);
  }
  if (code.length > MOST || !found.getLanguage(language)) return escape(code);
  return found.highlight(code, { language, ignoreIllegals: true }).value;
}
