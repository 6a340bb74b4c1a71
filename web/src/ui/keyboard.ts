/** Keys that work everywhere on the page. */

import { path } from "../chat/tree";
import { shown, startNew } from "../store/conversations";
import { running, stop } from "../store/replies";
import { copy } from "./clipboard";
import { editing, keysOpen, settingsOpen, sidebarOpen } from "./panels";

/** Begin to listen; the result ends it. */
export function listen(): () => void {
  addEventListener("keydown", onKey);
  return () => removeEventListener("keydown", onKey);
}

function onKey(event: KeyboardEvent): void {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  const action = event.ctrlKey || event.metaKey ? withControl(event) : alone(event);
  if (!action) return;
  event.preventDefault();
  action();
}

function withControl(event: KeyboardEvent): (() => void) | undefined {
  switch (event.key.toLowerCase()) {
    case "k":
      return () => {
        startNew();
        focus("composer");
      };
    case "b":
      return () => (sidebarOpen.value = !sidebarOpen.value);
    case ",":
      return () => (settingsOpen.value = !settingsOpen.value);
    case "f":
      return event.shiftKey ? search : undefined;
    case "c":
      return event.shiftKey ? copyLast : undefined;
    default:
      return undefined;
  }
}

function alone(event: KeyboardEvent): (() => void) | undefined {
  if (event.key === "Escape") return escape();
  const target = event.target as HTMLElement;
  const writing = target.matches("textarea, input, select");
  // The message box has the focus most of the time: there, too, as long as nothing is written in it.
  const blank = target.id === "composer" && (target as HTMLTextAreaElement).value === "";
  if (event.key === "?" && (!writing || blank)) return () => (keysOpen.value = true);
  if (event.key === "/" && !writing) return () => focus("composer");
  return undefined;
}

function escape(): (() => void) | undefined {
  const { id } = shown.value;
  if (running.value[id]) return () => stop(id);
  if (editing.value) return () => (editing.value = null);
  if (settingsOpen.value) return () => (settingsOpen.value = false);
  return undefined;
}

function search(): void {
  sidebarOpen.value = true;
  requestAnimationFrame(() => focus("search"));
}

function copyLast(): void {
  const last = path(shown.value).findLast((message) => message.role === "assistant" && message.text);
  if (last) void copy(last.text);
}

function focus(id: string): void {
  document.getElementById(id)?.focus();
}
