/** Copying text; also where the page came without TLS, and browsers have no clipboard for it. */

import { toast } from "../store/toasts";
import { t } from "../words/words";

/** Whether it was copied; says so itself if not. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    if (copyBySelection(text)) return true;
    toast(t("thread.copyFailed"));
    return false;
  }
}

function copyBySelection(text: string): boolean {
  const area = document.createElement("textarea");
  const focused = document.activeElement as HTMLElement | null;
  area.value = text;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}
