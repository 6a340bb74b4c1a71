/** The keys and what they do. */

import { t, type Word } from "../words/words";
import { Dialog } from "./Dialog";
import { keysOpen } from "./panels";

const KEYS: [Word, string[]][] = [
  ["keys.send", ["Enter"]],
  ["keys.newline", ["Shift", "Enter"]],
  ["keys.stop", ["Esc"]],
  ["keys.editLast", ["↑"]],
  ["keys.newChat", ["Ctrl", "K"]],
  ["keys.compose", ["/"]],
  ["keys.search", ["Ctrl", "Shift", "F"]],
  ["keys.settings", ["Ctrl", ","]],
  ["keys.sidebar", ["Ctrl", "B"]],
  ["keys.copyLast", ["Ctrl", "Shift", "C"]],
  ["keys.help", ["?"]],
];

export function ShortcutsDialog() {
  if (!keysOpen.value) return null;
  return (
    <Dialog title={t("keys.title")} close={() => (keysOpen.value = false)}>
      <dl class="keys">
        {KEYS.map(([name, keys]) => (
          <div key={name}>
            <dt>{t(name)}</dt>
            <dd>
              {keys.map((one) => (
                <kbd key={one}>{one}</kbd>
              ))}
            </dd>
          </div>
        ))}
      </dl>
    </Dialog>
  );
}
