/** The calls of a reply as cards, and their results: shown, or entered by hand. */

import { useSignal } from "@preact/signals";
import type { Conversation, Message, ToolCall } from "../chat/conversation";
import { highlight } from "../markdown/highlight";
import { clean } from "../markdown/render";
import { answerCalls } from "../store/replies";
import { t } from "../words/words";
import { grow } from "./grow";
import { Icon } from "./Icon";
import { useLayoutEffect, useRef } from "preact/hooks";

interface Props {
  conversation: Conversation;
  message: Message;
  results: Message[];
  writing: boolean;
  last: boolean;
}

export function ToolCalls({ conversation, message, results, writing, last }: Props) {
  const calls = message.toolCalls ?? [];
  const drafts = useSignal<Record<number, string>>({});
  const open = last && !writing && results.length === 0 && !message.failure;
  const send = () => {
    const answers = calls.map((call, i) => ({ call: call.id, text: drafts.value[i] ?? "" }));
    answerCalls(conversation.id, message.id, answers);
  };
  return (
    <div class="calls">
      {calls.map((call, i) => (
        <section class="call" key={i} aria-label={`${t("tool.call")}: ${call.name}`}>
          <h3>
            <Icon of="tool" />
            <span>{call.name}</span>
          </h3>
          <Arguments call={call} />
          {results[i] && (
            <div class="call-result">
              <h4>{t("tool.result")}</h4>
              <pre tabIndex={0}>{pretty(results[i].text)}</pre>
            </div>
          )}
          {open && (
            <textarea
              rows={1}
              aria-label={t("tool.resultOf", { name: call.name })}
              placeholder={t("tool.resultPlaceholder")}
              value={drafts.value[i] ?? ""}
              onInput={(event) => {
                drafts.value = { ...drafts.value, [i]: event.currentTarget.value };
                grow(event.currentTarget);
              }}
            />
          )}
        </section>
      ))}
      {open && (
        <button type="button" class="strong-button" onClick={send}>
          {t("tool.send")}
        </button>
      )}
    </div>
  );
}

function Arguments({ call }: { call: ToolCall }) {
  const place = useRef<HTMLPreElement>(null);
  const html = highlight(pretty(call.arguments), "json");
  useLayoutEffect(() => {
    place.current!.innerHTML = clean(html) as unknown as string;
  }, [html]);
  return <pre class="call-arguments" ref={place} tabIndex={0} />;
}

/** JSON with line breaks, or the text as it is while it is no JSON. */
function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
