/** Tool definitions as JSON. */

import { readTools } from "../chat/request";
import { shown, update } from "../store/conversations";
import { t } from "../words/words";

export function ToolsField() {
  const { id, tools } = shown.value;
  const { count, wrong } = check(tools);
  return (
    <label class="field">
      <span>
        {t("settings.tools")}
        {count > 0 && <small> · {t("settings.toolsCount", { count })}</small>}
      </span>
      <textarea
        key={id}
        class="mono"
        rows={tools ? 8 : 2}
        spellcheck={false}
        placeholder='[{"name": "get_weather", "parameters": {…}}]'
        aria-invalid={wrong !== null}
        value={tools}
        onInput={(event) => {
          const text = event.currentTarget.value;
          update(id, (old) => ({ ...old, tools: text }));
        }}
      />
      {wrong === null ? (
        <small>{t("settings.toolsHint")}</small>
      ) : (
        <small class="wrong">{t("settings.toolsWrong", { reason: wrong })}</small>
      )}
    </label>
  );
}

function check(typed: string): { count: number; wrong: string | null } {
  try {
    return { count: readTools(typed).length, wrong: null };
  } catch (error) {
    return { count: 0, wrong: error instanceof Error ? error.message : String(error) };
  }
}
