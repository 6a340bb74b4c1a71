/** "2/3": which of several versions of a message is shown, and the way to the others. */

import type { Conversation, Message } from "../chat/conversation";
import { siblings, turn } from "../chat/tree";
import { update } from "../store/conversations";
import { running } from "../store/replies";
import { t } from "../words/words";
import { IconButton } from "./Button";

export function Branches({ conversation, message }: { conversation: Conversation; message: Message }) {
  const { place, all } = siblings(conversation, message.id);
  if (all.length < 2) return null;
  const busy = running.value[conversation.id] !== undefined;
  const step = (by: number) => update(conversation.id, (old) => turn(old, message.id, by));
  return (
    <span class="branches">
      <IconButton icon="left" name={t("thread.previous")} disabled={busy || place === 0} onClick={() => step(-1)} />
      <span role="status" aria-label={t("thread.place", { place: place + 1, count: all.length })}>
        {place + 1}/{all.length}
      </span>
      <IconButton
        icon="right"
        name={t("thread.next")}
        disabled={busy || place === all.length - 1}
        onClick={() => step(1)}
      />
    </span>
  );
}
