/** TeX in Markdown: $…$ and \(…\) in a line, $$…$$ and \[…\] on their own. Money is no mathematics: "$5 and $6". */

import type { TokenizerAndRendererExtension, Tokens } from "marked";
import { escape } from "./escape";

const BLOCK = /^ {0,3}(?:\$\$([^]+?)\$\$|\\\[([^]+?)\\\])[ \t]*(?:\n+|$)/;
const DISPLAY = /^(?:\$\$([^$]+?)\$\$|\\\[([^]+?)\\\])/;
const INLINE = /^(?:\$(?!\s)((?:\\[^\n]|[^$\\\n])+?)(?<!\s)\$(?![0-9])|\\\(([^]+?)\\\))/;

/** The element holds the TeX until it is set; `typeset` does that. */
function element(tag: "div" | "span", token: Tokens.Generic): string {
  const kind = token.display ? "math display" : "math";
  return `<${tag} class="${kind}">${escape(token.text as string)}</${tag}>`;
}

export const mathBlock: TokenizerAndRendererExtension = {
  name: "mathBlock",
  level: "block",
  start: (text) => text.match(/(?:^|\n) {0,3}(?:\$\$|\\\[)/)?.index,
  tokenizer(text) {
    const found = BLOCK.exec(text);
    if (!found) return undefined;
    return { type: "mathBlock", raw: found[0], text: (found[1] ?? found[2])!.trim(), display: true };
  },
  renderer: (token) => element("div", token),
};

export const mathInline: TokenizerAndRendererExtension = {
  name: "mathInline",
  level: "inline",
  start: (text) => text.match(/\$|\\\(|\\\[/)?.index,
  tokenizer(text) {
    const display = DISPLAY.exec(text);
    const found = display ?? INLINE.exec(text);
    if (!found) return undefined;
    const tex = (found[1] ?? found[2])!.trim();
    return { type: "mathInline", raw: found[0], text: tex, display: display !== null };
  },
  renderer: (token) => element("span", token),
};

/** Set the mathematics inside `root`; KaTeX comes when first needed. A formula it cannot read stays as typed. */
export async function typeset(root: HTMLElement): Promise<void> {
  const formulas = root.querySelectorAll<HTMLElement>(".math:not([data-set])");
  if (formulas.length === 0) return;
  const { default: katex } = await import("./katex");
  for (const formula of formulas) {
    const tex = formula.textContent;
    formula.dataset.set = "";
    // Through the DOM and not as HTML: KaTeX's inline styles pass a strict policy this way.
    katex.render(tex, formula, {
      displayMode: formula.classList.contains("display"),
      throwOnError: false,
      strict: "ignore",
      trust: false,
      maxSize: 20,
      maxExpand: 500,
      errorColor: "var(--muted)",
    });
  }
}
