/** Saving conversations as a file, and reading one. */

import { fromFile, toFile } from "../chat/archive";
import type { Conversation } from "../chat/conversation";
import { ordered, restore } from "../store/conversations";
import { toast } from "../store/toasts";
import { t } from "../words/words";

export function exportAll(): void {
  save(ordered.value, "qwenkit-conversations.json");
}

export function exportOne(conversation: Conversation): void {
  const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40);
  save([conversation], `${name || "conversation"}.json`);
}

export async function importFile(event: Event): Promise<void> {
  const input = event.currentTarget as HTMLInputElement;
  const file = input.files?.[0];
  if (!file) return;
  try {
    const found = fromFile(await file.text());
    restore(found);
    toast(t("sidebar.imported", { count: found.length }));
  } catch (error) {
    toast(t("sidebar.importFailed", { reason: error instanceof Error ? error.message : String(error) }));
  }
  input.value = "";
}

function save(conversations: Conversation[], name: string): void {
  const address = URL.createObjectURL(new Blob([toFile(conversations)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
