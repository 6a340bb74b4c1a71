/** The box in which one writes. Enter sends, but not while an input method is choosing characters. */

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { path } from "../chat/tree";
import { find, shown } from "../store/conversations";
import { running, say, stop } from "../store/replies";
import { state } from "../store/server";
import { t } from "../words/words";
import { IconButton } from "./Button";
import { grow } from "./grow";
import { editing } from "./panels";

/** What was begun and not sent, by conversation. */
const drafts = signal<Record<string, string>>({});

export function Composer() {
  const conversation = shown.value;
  const area = useRef<HTMLTextAreaElement>(null);
  const draft = drafts.value[conversation.id] ?? "";
  const busy = running.value[conversation.id] !== undefined;
  const messages = path(conversation);
  const calling = !busy && (messages.at(-1)?.toolCalls?.length ?? 0) > 0;
  const ready = state.value === "ready" && !calling;

  useEffect(() => {
    if (matchMedia("(hover: hover)").matches) area.current?.focus();
  }, [conversation.id]);
  useEffect(() => grow(area.current!), [draft]);

  const send = () => {
    const text = draft.trim();
    if (!text || busy || !ready) return;
    drafts.value = { ...drafts.value, [conversation.id]: "" };
    say(conversation.id, messages.at(-1)?.id ?? null, text);
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <div class="composer-box">
        <textarea
          id="composer"
          ref={area}
          rows={1}
          aria-label={t("composer.label")}
          placeholder={t(calling ? "composer.answerCalls" : "composer.placeholder")}
          value={draft}
          onInput={(event) => (drafts.value = { ...drafts.value, [conversation.id]: event.currentTarget.value })}
          onKeyDown={(event) => {
            if (event.isComposing || event.keyCode === 229) return;
            if (event.key === "Enter" && !event.shiftKey) {
              event.preventDefault();
              send();
            }
            if (event.key === "ArrowUp" && draft === "") editLast(conversation.id, event);
          }}
        />
        {busy ? (
          <IconButton class="send" icon="stop" name={t("composer.stop")} onClick={() => stop(conversation.id)} />
        ) : (
          <IconButton class="send" icon="send" name={t("composer.send")} disabled={!draft.trim() || !ready} onClick={send} />
        )}
      </div>
      <p class="composer-hint">{t("composer.hint")}</p>
    </form>
  );
}

/** Put a text into the box of a conversation. */
export function suggest(conversation: string, text: string): void {
  drafts.value = { ...drafts.value, [conversation]: text };
  document.getElementById("composer")?.focus();
}

function editLast(id: string, event: Event): void {
  const conversation = find(id);
  const last = conversation && path(conversation).findLast((message) => message.role === "user");
  if (!last || running.value[id]) return;
  event.preventDefault();
  editing.value = last.id;
}
