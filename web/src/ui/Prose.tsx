/** Markdown, block by block, so that a growing text is not drawn anew from its beginning. */

import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { memo } from "preact/compat";
import { coloured } from "../markdown/highlight";
import { typeset } from "../markdown/math";
import { blocks, type Block } from "../markdown/render";
import { language } from "../store/preferences";
import { t } from "../words/words";
import { copy } from "./clipboard";

export function Prose({ text, writing }: { text: string; writing: boolean }) {
  const found = useMemo(() => blocks(text), [text]);
  const colours = coloured.value !== null;
  return (
    <div class={`prose ${writing ? "writing" : ""}`}>
      {found.map((block, i) => (
        <BlockView key={i} block={block} colours={colours} language={language.value} />
      ))}
    </div>
  );
}

const BlockView = memo(
  function BlockView({ block }: { block: Block; colours: boolean; language: string }) {
    const place = useRef<HTMLDivElement>(null);
    useLayoutEffect(() => {
      const at = place.current!;
      at.innerHTML = block.html() as unknown as string;
      addCopying(at);
    });
    useEffect(() => void typeset(place.current!));
    return <div class="block" ref={place} />;
  },
  (old, now) =>
    old.block.source === now.block.source && old.colours === now.colours && old.language === now.language,
);

function addCopying(root: HTMLElement): void {
  for (const head of root.querySelectorAll(".code-head")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = t("thread.copy");
    button.setAttribute("aria-label", t("thread.copyCode"));
    button.addEventListener("click", async () => {
      const code = head.nextElementSibling?.textContent ?? "";
      if (!(await copy(code))) return;
      button.textContent = t("thread.copied");
      setTimeout(() => (button.textContent = t("thread.copy")), 1500);
    });
    head.append(button);
    head.nextElementSibling?.setAttribute("tabindex", "0");
  }
  for (const table of root.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    frame.tabIndex = 0;
    table.replaceWith(frame);
    frame.append(table);
  }
}
