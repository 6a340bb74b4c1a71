/** What a person said; editing it makes another branch. */

import { useEffect, useRef } from "preact/hooks";
import type { Conversation, Message } from "../chat/conversation";
import { running, say } from "../store/replies";
import { t } from "../words/words";
import { Branches } from "./Branches";
import { IconButton } from "./Button";
import { CopyButton } from "./CopyButton";
import { grow } from "./grow";
import { editing } from "./panels";

export function Question({ conversation, message }: { conversation: Conversation; message: Message }) {
  const busy = running.value[conversation.id] !== undefined;
  return (
    <li class="question" aria-label={t("thread.you")}>
      {editing.value === message.id ? (
        <Editor conversation={conversation} message={message} />
      ) : (
        <>
          <div class="bubble">{message.text}</div>
          <div class="tools">
            <Branches conversation={conversation} message={message} />
            <IconButton
              icon="edit"
              name={t("thread.edit")}
              disabled={busy}
              onClick={() => (editing.value = message.id)}
            />
            <CopyButton text={message.text} />
          </div>
        </>
      )}
    </li>
  );
}

function Editor({ conversation, message }: { conversation: Conversation; message: Message }) {
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    const at = area.current!;
    grow(at);
    at.focus();
    at.setSelectionRange(at.value.length, at.value.length);
  }, []);
  const close = () => {
    editing.value = null;
    document.getElementById("composer")?.focus();
  };
  const send = () => {
    const text = area.current!.value.trim();
    if (!text) return;
    close();
    say(conversation.id, message.parent, text);
  };
  return (
    <div class="editor">
      <textarea
        ref={area}
        aria-label={t("thread.editLabel")}
        defaultValue={message.text}
        onInput={(event) => grow(event.currentTarget)}
        onKeyDown={(event) => {
          if (event.isComposing) return;
          if (event.key === "Enter" && !event.shiftKey) {
            event.preventDefault();
            send();
          }
          if (event.key === "Escape") {
            event.stopPropagation();
            close();
          }
        }}
      />
      <div class="editor-tools">
        <button type="button" class="quiet-button" onClick={close}>
          {t("thread.editCancel")}
        </button>
        <button type="button" class="strong-button" onClick={send}>
          {t("thread.editSend")}
        </button>
      </div>
    </div>
  );
}
