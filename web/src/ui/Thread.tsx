/** The messages that are shown. It keeps to its end while that is in sight, and no longer. */

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import type { Conversation, Message } from "../chat/conversation";
import { path } from "../chat/tree";
import { shown } from "../store/conversations";
import { running } from "../store/replies";
import { t } from "../words/words";
import { IconButton } from "./Button";
import { Empty } from "./Empty";
import { Reply } from "./Reply";
import { Question } from "./Question";

const NEAR_PX = 60;

export function Thread() {
  const conversation = shown.value;
  const messages = path(conversation);
  const place = useRef<HTMLDivElement>(null);
  const following = useRef(true);
  const away = useSignal(false);
  const writing = running.value[conversation.id];

  const toEnd = () => {
    const at = place.current;
    if (at) at.scrollTop = at.scrollHeight;
  };
  const follow = () => {
    following.current = true;
    away.value = false;
    toEnd();
  };
  useLayoutEffect(follow, [conversation.id]);
  useLayoutEffect(() => {
    if (writing) follow();
  }, [writing?.message]);
  useEffect(() => {
    // Formulas, colours and fonts come late and make the text longer.
    const inside = place.current?.querySelector(".messages");
    if (!inside) return undefined;
    const observer = new ResizeObserver(() => {
      if (following.current) toEnd();
    });
    observer.observe(inside);
    return () => observer.disconnect();
  }, [messages.length === 0]);
  const onScroll = () => {
    const at = place.current!;
    following.current = at.scrollHeight - at.scrollTop - at.clientHeight < NEAR_PX;
    away.value = !following.current;
  };

  if (messages.length === 0) return <Empty />;
  return (
    <div class="thread-frame">
      <div class="thread" ref={place} onScroll={onScroll} tabIndex={0} role="region" aria-label={t("thread.label")}>
        <h1 class="unseen">{conversation.title || t("sidebar.untitled")}</h1>
        <ol class="messages">
          {parts(messages).map((part) => (
            <Part key={part[0]!.id} conversation={conversation} part={part} last={part.at(-1) === messages.at(-1)} />
          ))}
        </ol>
      </div>
      {away.value && <IconButton class="to-end" icon="down" name={t("thread.latest")} onClick={toEnd} />}
    </div>
  );
}

/** A reply that calls tools goes together with their results. */
function parts(messages: Message[]): Message[][] {
  const found: Message[][] = [];
  for (const message of messages) {
    if (message.role === "tool" && found.length) found.at(-1)!.push(message);
    else found.push([message]);
  }
  return found;
}

function Part({ conversation, part, last }: { conversation: Conversation; part: Message[]; last: boolean }) {
  const [message, ...results] = part as [Message, ...Message[]];
  if (message.role === "user") return <Question conversation={conversation} message={message} />;
  return <Reply conversation={conversation} message={message} results={results} last={last} />;
}
