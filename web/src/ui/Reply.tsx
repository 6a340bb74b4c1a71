/** What the model said: its words, its tool calls, how it ended, how fast it was. */

import type { Conversation, Message } from "../chat/conversation";
import { regenerate, resume, running } from "../store/replies";
import { t } from "../words/words";
import { Branches } from "./Branches";
import { IconButton } from "./Button";
import { CopyButton } from "./CopyButton";
import { Icon } from "./Icon";
import { Prose } from "./Prose";
import { Speed } from "./Speed";
import { ToolCalls } from "./ToolCalls";
import { Waiting } from "./Waiting";

interface Props {
  conversation: Conversation;
  message: Message;
  results: Message[];
  last: boolean;
}

export function Reply({ conversation, message, results, last }: Props) {
  const run = running.value[conversation.id];
  const writing = run?.message === message.id;
  const silent = !message.text && !message.toolCalls?.length;
  return (
    <li class={`reply ${last ? "last" : ""}`} aria-label={t("thread.assistant")} aria-busy={writing}>
      {writing && run.first === null && silent && <Waiting since={run.began} />}
      {message.text && <Prose text={message.text} writing={writing} />}
      {message.toolCalls && (
        <ToolCalls conversation={conversation} message={message} results={results} writing={writing} last={last} />
      )}
      {!writing && <Ending conversation={conversation} message={message} last={last} />}
      <div class="tools">
        {!writing && (
          <>
            <Branches conversation={conversation} message={message} />
            {!silent && <CopyButton text={message.text} />}
            {!message.failure && (
              <IconButton
                icon="again"
                name={t("thread.regenerate")}
                disabled={run !== undefined}
                onClick={() => regenerate(conversation.id, message.id)}
              />
            )}
          </>
        )}
        <Speed message={message} run={writing ? run : undefined} />
      </div>
    </li>
  );
}

/** How a reply ended, where that was not by itself, and what can be done about it. */
function Ending({ conversation, message, last }: Omit<Props, "results">) {
  const { failure, finish } = message;
  if (!failure && (finish === "stop" || finish === "tool_calls")) return null;
  const short = message.text !== "" && !message.toolCalls?.length && !conversation.tools;
  const goOn = short && last && (
    <button type="button" class="quiet-button" onClick={() => resume(conversation.id, message.id)}>
      <Icon of="play" />
      {t("thread.continue")}
    </button>
  );
  if (!failure) {
    const why = finish === "length" ? "thread.length" : finish === "stopped" ? "thread.stopped" : "thread.interrupted";
    return (
      <p class="ending">
        {t(why)}
        {goOn}
      </p>
    );
  }
  const words =
    failure.code === "lost" ? t("thread.lost") : failure.code === "unreachable" ? t("thread.unreachable") : failure.message;
  return (
    <div class="failure" role="alert">
      <Icon of="warning" />
      <p>{words}</p>
      <span class="failure-tools">
        {goOn}
        <button type="button" class="quiet-button" onClick={() => regenerate(conversation.id, message.id)}>
          <Icon of="again" />
          {t("thread.retry")}
        </button>
      </span>
    </div>
  );
}
