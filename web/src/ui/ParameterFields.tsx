/** How the next reply is drawn; what is left empty is the checkpoint's to say. */

import type { ParameterName, Parameters } from "../chat/conversation";
import { shown, update } from "../store/conversations";
import { t } from "../words/words";
import { IconButton } from "./Button";

interface Range {
  name: ParameterName;
  min?: number;
  max?: number;
  step: number;
}

const RANGES: Range[] = [
  { name: "temperature", min: 0, max: 5, step: 0.1 },
  { name: "top_p", min: 0, max: 1, step: 0.05 },
  { name: "top_k", min: 0, step: 1 },
  { name: "min_p", min: 0, max: 1, step: 0.01 },
  { name: "max_tokens", min: 1, step: 1 },
  { name: "repetition_penalty", min: 0.1, max: 5, step: 0.05 },
  { name: "presence_penalty", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", min: -2, max: 2, step: 0.1 },
  { name: "seed", min: 0, step: 1 },
];

export function ParameterFields() {
  const { id, parameters } = shown.value;
  const set = (values: Partial<Parameters>) =>
    update(id, (old) => ({ ...old, parameters: defined({ ...old.parameters, ...values }) }));
  return (
    <fieldset class="parameters">
      <legend>{t("settings.parameters")}</legend>
      {RANGES.map((range) => (
        <Field key={`${id} ${range.name}`} range={range} value={parameters[range.name]} set={set} />
      ))}
      <label class="field" title={t("parameter.stop.hint")}>
        <span>{t("parameter.stop")}</span>
        <textarea
          key={id}
          rows={1}
          placeholder={t("settings.fromCheckpoint")}
          defaultValue={parameters.stop?.join("\n") ?? ""}
          onChange={(event) => {
            const lines = event.currentTarget.value.split("\n").filter(Boolean);
            set({ stop: lines.length ? lines : undefined });
          }}
        />
        <small>{t("parameter.stop.hint")}</small>
      </label>
      {Object.keys(parameters).length > 0 && (
        <button
          type="button"
          class="quiet-button"
          onClick={() => update(id, (old) => ({ ...old, parameters: {} }))}
        >
          {t("settings.resetAll")}
        </button>
      )}
    </fieldset>
  );
}

function Field(props: { range: Range; value: number | undefined; set: (values: Partial<Parameters>) => void }) {
  const { range, value, set } = props;
  const name = t(`parameter.${range.name}`);
  return (
    <label class={`number ${value === undefined ? "" : "given"}`} title={t(`parameter.${range.name}.hint`)}>
      <span>{name}</span>
      <input
        type="number"
        inputMode="decimal"
        min={range.min}
        max={range.max}
        step="any"
        placeholder={t("settings.fromCheckpoint")}
        value={value ?? ""}
        onInput={(event) => {
          const given = event.currentTarget.valueAsNumber;
          set({ [range.name]: Number.isNaN(given) ? undefined : given });
        }}
      />
      {value !== undefined && (
        <IconButton icon="close" name={t("settings.reset", { name })} onClick={() => set({ [range.name]: undefined })} />
      )}
    </label>
  );
}

function defined(parameters: Parameters): Parameters {
  return Object.fromEntries(Object.entries(parameters).filter(([, value]) => value !== undefined));
}
