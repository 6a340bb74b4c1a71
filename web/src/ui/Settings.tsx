/** The panel at the side: what this chat asks with, and how the page looks. */

import { shown, update } from "../store/conversations";
import { key, keep } from "../store/key";
import { language, setupOfNew, theme, type Language, type Theme } from "../store/preferences";
import { toast } from "../store/toasts";
import { t, type Word } from "../words/words";
import { IconButton } from "./Button";
import { ParameterFields } from "./ParameterFields";
import { keysOpen, settingsOpen } from "./panels";
import { ToolsField } from "./ToolsField";

const THEMES: [Theme, Word][] = [
  ["system", "settings.themeSystem"],
  ["light", "settings.themeLight"],
  ["dark", "settings.themeDark"],
];
const LANGUAGES: [Language, string][] = [
  ["en", "English"],
  ["zh", "中文"],
];

export function Settings() {
  return (
    <aside class="settings" aria-label={t("settings.open")}>
      <header class="bar">
        <h2>{t("settings.conversation")}</h2>
        <span class="spring" />
        <IconButton icon="close" name={t("settings.close")} onClick={() => (settingsOpen.value = false)} />
      </header>
      <div class="settings-body">
        <SystemPrompt />
        <ParameterFields />
        <ToolsField />
        <button type="button" class="quiet-button wide" onClick={useForNew}>
          {t("settings.useForNew")}
        </button>
        <hr />
        <h2>{t("settings.interface")}</h2>
        <Choice name={t("settings.theme")} of={THEMES.map(([value, word]) => [value, t(word)])} signal={theme} />
        <Choice name={t("settings.language")} of={LANGUAGES} signal={language} />
        {key.value && (
          <button type="button" class="quiet-button wide" onClick={() => keep("")}>
            {t("settings.keyForget")}
          </button>
        )}
        <button type="button" class="quiet-button wide" onClick={() => (keysOpen.value = true)}>
          {t("settings.keys")}
        </button>
        <a class="small" href="licences.txt" target="_blank">
          {t("settings.licences")}
        </a>
      </div>
    </aside>
  );
}

function useForNew(): void {
  const { system, parameters, tools } = shown.value;
  setupOfNew.value = { system, parameters, tools };
  toast(t("settings.usedForNew"));
}

function SystemPrompt() {
  const { id, system } = shown.value;
  return (
    <label class="field">
      <span>{t("settings.system")}</span>
      <textarea
        key={id}
        rows={4}
        placeholder={t("settings.systemDefault")}
        value={system ?? ""}
        onInput={(event) => {
          const text = event.currentTarget.value;
          update(id, (old) => ({ ...old, system: text === "" ? null : text }));
        }}
      />
      <small>{t("settings.systemHint")}</small>
    </label>
  );
}

function Choice<T extends string>(props: { name: string; of: [T, string][]; signal: { value: T } }) {
  return (
    <fieldset class="choice">
      <legend>{props.name}</legend>
      <div>
        {props.of.map(([value, words]) => (
          <label key={value}>
            <input
              type="radio"
              name={props.name}
              checked={props.signal.value === value}
              onChange={() => (props.signal.value = value)}
            />
            <span>{words}</span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}
