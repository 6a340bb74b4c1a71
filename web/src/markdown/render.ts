/** Markdown of a model, which is nobody's friend, to HTML that can do nothing.
 *
 * HTML in it is shown as text, images become links, links lead to the web and nowhere else; what is made of
 * that goes through DOMPurify, whose policy is the only one that may write HTML into the page.
 */

import DOMPurify from "dompurify";
import { Marked } from "marked";
import { chineseStrong } from "./chinese";
import { escape, safeAddress } from "./escape";
import { highlight } from "./highlight";
import { mathBlock, mathInline } from "./math";

const HARMLESS = /^<\/?(?:br|sub|sup|kbd|u|mark)\s*\/?>$/i;

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html({ text, block }) {
      if (HARMLESS.test(text.trim())) return text;
      return block ? `<p class="verbatim">${escape(text.trimEnd())}</p>` : escape(text);
    },
    checkbox({ checked }) {
      return `<span class="task">${checked ? "☑" : "☐"}</span> `;
    },
    image({ href, text }) {
      return anchor(href, escape(text || href));
    },
    link({ href, tokens }) {
      return anchor(href, this.parser.parseInline(tokens));
    },
    code({ text, lang }) {
      const language = (lang ?? "").match(/^[\w+#.-]+/)?.[0].toLowerCase() ?? "";
      const code = highlight(text, language);
      return `<div class="code"><div class="code-head"><span>${escape(language)}</span></div><pre><code>${code}</code></pre></div>`;
    },
  },
});
marked.use({ extensions: [mathBlock, mathInline, chineseStrong] });

function anchor(href: string, inside: string): string {
  const address = safeAddress(href);
  if (address === null) return inside;
  return `<a href="${escape(address)}" target="_blank" rel="noopener noreferrer nofollow">${inside}</a>`;
}

const POLICY = {
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "del", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "kbd",
    "li", "mark", "ol", "p", "pre", "span", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "u",
    "ul",
  ],
  ALLOWED_ATTR: ["align", "class", "href", "rel", "start", "target"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: ["align", "rel", "start", "target"], // hold no addresses
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_TRUSTED_TYPE: true,
};

/** HTML that may be written into the page. */
export type CleanHTML = { readonly __brand: "clean" };

export function clean(html: string): CleanHTML {
  return DOMPurify.sanitize(html, POLICY) as unknown as CleanHTML;
}

/** A paragraph, list, table, piece of code ... of a text. Equal source means equal HTML. */
export interface Block {
  source: string;
  html: () => CleanHTML;
}

/** The blocks of a text. A growing text keeps its earlier blocks, so only the last need be drawn anew. */
export function blocks(text: string): Block[] {
  const tokens = marked.lexer(text);
  return tokens
    .filter((token) => token.type !== "space" && token.type !== "def")
    .map((token) => ({ source: token.raw, html: () => clean(marked.parser([token])) }));
}
