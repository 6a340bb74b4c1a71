/** Before the first word: the prompt is being read. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { t } from "../words/words";

const SAY_AFTER_S = 3;

export function Waiting({ since }: { since: number }) {
  const seconds = useSignal(0);
  useEffect(() => {
    const timer = setInterval(() => (seconds.value = Math.floor((performance.now() - since) / 1000)), 500);
    return () => clearInterval(timer);
  }, [since]);
  const words =
    seconds.value < SAY_AFTER_S ? t("thread.thinking") : t("thread.thinkingSeconds", { seconds: seconds.value });
  return (
    <p class="waiting">
      <span class="dots" aria-hidden="true">
        <i />
        <i />
        <i />
      </span>
      {words}
    </p>
  );
}
