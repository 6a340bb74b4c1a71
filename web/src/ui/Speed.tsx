/** Tokens, tokens a second and the time to the first one. */

import type { Message } from "../chat/conversation";
import type { Running } from "../store/replies";
import { formatNumber, t } from "../words/words";

export function Speed({ message, run }: { message: Message; run: Running | undefined }) {
  const parts: string[] = [];
  if (run) {
    // While it runs, pieces stand for tokens; the server's own count comes at the end.
    if (run.first !== null) parts.push(...rates(run.pieces, performance.now() - run.first));
  } else {
    const { completionTokens, firstTokenMs, decodeMs } = message.stats ?? {};
    if (completionTokens === undefined) return null;
    parts.push(t("thread.stats", { tokens: formatNumber(completionTokens) }));
    if (decodeMs !== undefined) parts.push(...rates(completionTokens, decodeMs));
    if (firstTokenMs !== undefined) {
      parts.push(t("thread.firstToken", { seconds: formatNumber(firstTokenMs / 1000, 2) }));
    }
  }
  if (parts.length === 0) return null;
  const prompt = message.stats?.promptTokens;
  const hint = prompt === undefined || run ? undefined : t("thread.statsHint", { prompt: formatNumber(prompt) });
  return (
    <span class="speed" title={hint}>
      {parts.map((part) => (
        <span key={part}>{part}</span>
      ))}
    </span>
  );
}

/** The first token begins the clock, so it does not count. */
function rates(tokens: number, ms: number): string[] {
  if (tokens < 2 || ms < 1) return [];
  const speed = ((tokens - 1) * 1000) / ms;
  return [t("thread.speed", { speed: formatNumber(speed, speed < 100 ? 1 : 0) })];
}
