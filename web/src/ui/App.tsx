/** The whole page. */

import { useEffect } from "preact/hooks";
import { loaded } from "../store/conversations";
import { t } from "../words/words";
import { Announcer } from "./Announcer";
import { Composer } from "./Composer";
import { Header } from "./Header";
import { KeyDialog } from "./KeyDialog";
import { listen } from "./keyboard";
import { sidebarOpen, settingsOpen } from "./panels";
import { Settings } from "./Settings";
import { ShortcutsDialog } from "./ShortcutsDialog";
import { Sidebar } from "./Sidebar";
import { Thread } from "./Thread";
import { Toasts } from "./Toasts";

export function App() {
  useEffect(listen, []);
  if (!loaded.value) return null;
  return (
    <>
      <a class="skip" href="#composer" onClick={skip}>
        {t("app.skip")}
      </a>
      <div class={`page ${sidebarOpen.value ? "with-sidebar" : ""} ${settingsOpen.value ? "with-settings" : ""}`}>
        <Sidebar />
        <main class="chat">
          <Header />
          <Thread />
          <Composer />
        </main>
        {settingsOpen.value && <Settings />}
      </div>
      <Toasts />
      <KeyDialog />
      <ShortcutsDialog />
      <Announcer />
    </>
  );
}

function skip(event: Event): void {
  event.preventDefault();
  document.getElementById("composer")?.focus();
}
