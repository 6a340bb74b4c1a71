/** The conversations of this browser. */

import { signal } from "@preact/signals";
import type { Conversation } from "../chat/conversation";
import { notKept, ordered, startNew } from "../store/conversations";
import { t, type Word } from "../words/words";
import { exportAll, importFile } from "./archives";
import { IconButton } from "./Button";
import { ConversationRow } from "./ConversationRow";
import { Icon } from "./Icon";
import { leaveSidebar, sidebarOpen } from "./panels";

const sought = signal("");

export function Sidebar() {
  if (!sidebarOpen.value) return null;
  return (
    <>
      <div class="scrim" onClick={() => (sidebarOpen.value = false)} />
      <nav class="sidebar" aria-label={t("sidebar.label")}>
        <div class="sidebar-head">
          <span class="brand">qwenkit</span>
          <IconButton icon="sidebar" name={t("sidebar.close")} onClick={() => (sidebarOpen.value = false)} />
        </div>
        <button type="button" class="new-chat" onClick={begin}>
          <Icon of="plus" />
          {t("sidebar.new")}
          <kbd>Ctrl K</kbd>
        </button>
        <label class="search">
          <Icon of="search" />
          <input
            id="search"
            type="search"
            placeholder={t("sidebar.search")}
            aria-label={t("sidebar.search")}
            value={sought.value}
            onInput={(event) => (sought.value = event.currentTarget.value)}
          />
        </label>
        <div class="rows">
          <Rows />
        </div>
        <div class="sidebar-foot">
          {notKept.value && <p class="note">{t("sidebar.notKept")}</p>}
          <label class="quiet-button file">
            <Icon of="upload" />
            {t("sidebar.import")}
            <input type="file" accept="application/json,.json" onChange={importFile} />
          </label>
          <button type="button" class="quiet-button" disabled={ordered.value.length === 0} onClick={exportAll}>
            <Icon of="download" />
            {t("sidebar.exportAll")}
          </button>
        </div>
      </nav>
    </>
  );
}

function begin(): void {
  startNew();
  leaveSidebar();
  document.getElementById("composer")?.focus();
}

function Rows() {
  const words = sought.value.trim().toLowerCase();
  const found = ordered.value.filter((one) => matches(one, words));
  if (found.length === 0) return <p class="note">{t(words ? "sidebar.nothingFound" : "sidebar.none")}</p>;
  return (
    <>
      {byAge(found).map(([age, some]) => (
        <section key={age}>
          <h2>{t(age)}</h2>
          <ul>
            {some.map((one) => (
              <ConversationRow key={one.id} conversation={one} />
            ))}
          </ul>
        </section>
      ))}
    </>
  );
}

function matches(conversation: Conversation, words: string): boolean {
  if (!words || conversation.title.toLowerCase().includes(words)) return true;
  return Object.values(conversation.messages).some((message) => message.text.toLowerCase().includes(words));
}

function byAge(some: Conversation[]): [Word, Conversation[]][] {
  const today = new Date().setHours(0, 0, 0, 0);
  const day = 86_400_000;
  const groups = new Map<Word, Conversation[]>();
  for (const one of some) {
    const at = one.updated;
    const age: Word =
      at >= today ? "time.today"
      : at >= today - day ? "time.yesterday"
      : at >= today - 7 * day ? "time.week"
      : "time.older";
    groups.set(age, [...(groups.get(age) ?? []), one]);
  }
  return [...groups];
}
