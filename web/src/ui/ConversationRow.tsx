/** One conversation of the list: open, rename, export, delete. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Conversation } from "../chat/conversation";
import { remove, restore, show, shown, update } from "../store/conversations";
import { running, stop } from "../store/replies";
import { toast } from "../store/toasts";
import { t } from "../words/words";
import { exportOne } from "./archives";
import { IconButton } from "./Button";
import { leaveSidebar } from "./panels";

export function ConversationRow({ conversation }: { conversation: Conversation }) {
  const renaming = useSignal(false);
  const { id } = conversation;
  const title = conversation.title || t("sidebar.untitled");
  if (renaming.value) return <Renaming conversation={conversation} done={() => (renaming.value = false)} />;
  const here = shown.value.id === id;
  const open = () => {
    show(id);
    leaveSidebar();
  };
  return (
    <li class={`row ${here ? "here" : ""}`}>
      <button type="button" class="row-title" aria-current={here ? "true" : undefined} title={title} onClick={open}>
        {running.value[id] && <span class="dot busy" role="img" aria-label={t("sidebar.running")} />}
        <span>{title}</span>
      </button>
      <span class="row-tools">
        <IconButton icon="edit" name={t("sidebar.rename")} onClick={() => (renaming.value = true)} />
        <IconButton icon="download" name={t("sidebar.export")} onClick={() => exportOne(conversation)} />
        <IconButton icon="trash" name={t("sidebar.delete")} onClick={() => discard(conversation, title)} />
      </span>
    </li>
  );
}

function discard(conversation: Conversation, title: string): void {
  stop(conversation.id);
  remove(conversation.id);
  toast(t("sidebar.deleted", { title }), {
    label: t("sidebar.undo"),
    run: () => {
      restore([conversation]);
      show(conversation.id);
    },
  });
}

function Renaming({ conversation, done }: { conversation: Conversation; done: () => void }) {
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current?.select(), []);
  const save = () => {
    const title = input.current?.value.trim();
    if (title) update(conversation.id, (old) => ({ ...old, title, renamed: true }));
    done();
  };
  return (
    <li class="row">
      <input
        ref={input}
        class="row-rename"
        aria-label={t("sidebar.title")}
        defaultValue={conversation.title}
        onBlur={save}
        onKeyDown={(event) => {
          if (event.isComposing) return;
          if (event.key === "Enter") save();
          if (event.key === "Escape") {
            event.stopPropagation();
            done();
          }
        }}
      />
    </li>
  );
}
