/** Which parts of the page are open. */

import { signal } from "@preact/signals";

const narrow = matchMedia("(max-width: 820px)");

export const sidebarOpen = signal(!narrow.matches);
export const settingsOpen = signal(false);
export const keysOpen = signal(false);
/** The message that is being edited. */
export const editing = signal<string | null>(null);

narrow.addEventListener("change", () => {
  sidebarOpen.value = !narrow.matches;
});

/** On a phone the sidebar lies over the chat: what leads elsewhere closes it. */
export function leaveSidebar(): void {
  if (narrow.matches) sidebarOpen.value = false;
}
