/** The bar over the chat: which model, how full its context is, and the ways to the panels. */

import { path } from "../chat/tree";
import { shown, startNew } from "../store/conversations";
import { model } from "../store/preferences";
import { current, models, state } from "../store/server";
import { formatNumber, t } from "../words/words";
import { IconButton } from "./Button";
import { settingsOpen, sidebarOpen } from "./panels";

export function Header() {
  return (
    <header class="bar">
      {!sidebarOpen.value && (
        <>
          <IconButton icon="sidebar" name={t("sidebar.open")} onClick={() => (sidebarOpen.value = true)} />
          <IconButton icon="plus" name={t("sidebar.new")} onClick={startNew} />
        </>
      )}
      <ModelName />
      <span class="spring" />
      <Context />
      <IconButton
        icon="settings"
        name={t(settingsOpen.value ? "settings.close" : "settings.open")}
        aria-expanded={settingsOpen.value}
        onClick={() => (settingsOpen.value = !settingsOpen.value)}
      />
    </header>
  );
}

function ModelName() {
  if (state.value !== "ready") {
    return (
      <span class={`state ${state.value}`} role="status">
        <span class="dot" />
        {t(`server.${state.value}`)}
      </span>
    );
  }
  if (models.value.length < 2) return <span class="model">{current.value?.id}</span>;
  return (
    <select
      class="model"
      aria-label={t("server.model")}
      value={current.value?.id}
      onChange={(event) => (model.value = event.currentTarget.value)}
    >
      {models.value.map((one) => (
        <option key={one.id}>{one.id}</option>
      ))}
    </select>
  );
}

function Context() {
  const all = current.value?.max_model_len;
  const stats = path(shown.value).findLast((message) => message.stats?.promptTokens)?.stats;
  if (!all || !stats) return null;
  const used = (stats.promptTokens ?? 0) + (stats.completionTokens ?? 0);
  const share = Math.min(1, used / all);
  const name = t("context.used", { used: formatNumber(used), all: formatNumber(all) });
  return (
    <span class={`context ${share > 0.9 ? "full" : ""}`} title={name}>
      <span class="context-words">{`${formatNumber(used)} / ${formatNumber(all)}`}</span>
      <meter aria-label={t("context.label")} min={0} max={all} value={used} />
    </span>
  );
}
