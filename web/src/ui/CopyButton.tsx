/** Copies a text and says that it did. */

import { useSignal } from "@preact/signals";
import { t } from "../words/words";
import { IconButton } from "./Button";
import { copy } from "./clipboard";

const SHOWN_MS = 1500;

export function CopyButton({ text }: { text: string }) {
  const copied = useSignal(false);
  const run = async () => {
    copied.value = await copy(text);
    setTimeout(() => (copied.value = false), SHOWN_MS);
  };
  return (
    <IconButton
      icon={copied.value ? "check" : "copy"}
      name={t(copied.value ? "thread.copied" : "thread.copy")}
      onClick={run}
    />
  );
}
