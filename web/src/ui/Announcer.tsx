/** Reads a growing reply to those who hear the page: sentence by sentence, not token by token. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { shown } from "../store/conversations";
import { running } from "../store/replies";
import { t } from "../words/words";

const SENTENCE = /[^]*[.!?。！？\n]/;

export function Announcer() {
  const said = useRef({ message: "", length: 0 });
  const words = useSignal("");
  const conversation = shown.value;
  const writing = running.value[conversation.id]?.message ?? "";
  const text = conversation.messages[writing || said.current.message]?.text ?? "";
  useEffect(() => {
    if (writing && said.current.message !== writing) said.current = { message: writing, length: text.length };
    const fresh = text.slice(said.current.length);
    if (writing) {
      const whole = SENTENCE.exec(fresh)?.[0];
      if (!whole) return;
      said.current.length += whole.length;
      words.value = whole;
    } else if (said.current.message) {
      words.value = `${fresh} ${t("thread.done")}`;
      said.current = { message: "", length: 0 };
    }
  }, [writing, text]);
  return (
    <div class="unseen" aria-live="polite" role="log">
      {words.value}
    </div>
  );
}
