/** How the next reply is drawn; what is left empty is the checkpoint's to say. */

import type { ParameterName, Parameters } from "../chat/conversation";
import { shown, update } from "../store/conversations";
import { t } from "../words/words";
import { IconButton } from "./Button";

interface Range {
  name: ParameterName;
  min?: number;
  max?: number;
}

const RANGES: Range[] = [
  { name: "temperature", min: 0, max: 5 },
  { name: "top_p", min: 0, max: 1 },
  { name: "top_k", min: 0 },
  { name: "min_p", min: 0, max: 1 },
  { name: "max_tokens", min: 1 },
  { name: "repetition_penalty", min: 0.1, max: 5 },
  { name: "presence_penalty", min: -2, max: 2 },
  { name: "frequency_penalty", min: -2, max: 2 },
  { name: "seed", min: 0 },
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
    <div class={`number ${value === undefined ? "" : "given"}`} title={t(`parameter.${range.name}.hint`)}>
      <label for={range.name}>{name}</label>
      <input
        id={range.name}
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
    </div>
  );
}

function defined(parameters: Parameters): Parameters {
  return Object.fromEntries(Object.entries(parameters).filter(([, value]) => value !== undefined));
}
