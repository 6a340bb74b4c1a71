/** Emphasis beside Chinese punctuation: CommonMark leaves the stars of **“这样”**的 standing. */

import type { TokenizerAndRendererExtension, Tokens } from "marked";

const CJK = "[\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\u3000-\\u303f\\uff00-\\uffef“”‘’…—]";
const STRONG = new RegExp(`^\\*\\*(?![\\s*])((?:\\\\.|[^*\\\\\\n])+?)(?<![\\s\\\\])\\*\\*(?!\\*)`, "u");
const TOUCHES = new RegExp(`^${CJK}|${CJK}$`, "u");

export const chineseStrong: TokenizerAndRendererExtension = {
  name: "chineseStrong",
  level: "inline",
  start: (text) => {
    const at = text.indexOf("**");
    return at < 0 ? undefined : at;
  },
  tokenizer(text) {
    const found = STRONG.exec(text);
    const words = found?.[1];
    if (!found || !words || !TOUCHES.test(words)) return undefined;
    return { type: "chineseStrong", raw: found[0], text: words, tokens: this.lexer.inlineTokens(words) };
  },
  renderer(token: Tokens.Generic) {
    return `<strong>${this.parser.parseInline(token.tokens ?? [])}</strong>`;
  },
};
