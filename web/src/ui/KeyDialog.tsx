/** Asks for the API key when the server does. */

import { useRef } from "preact/hooks";
import { asking, keep } from "../store/key";
import { t } from "../words/words";
import { Dialog } from "./Dialog";

export function KeyDialog() {
  const input = useRef<HTMLInputElement>(null);
  const question = asking.value;
  if (!question) return null;
  const close = () => (asking.value = null);
  const send = (event: Event) => {
    event.preventDefault();
    const given = input.current!.value.trim();
    if (!given) return;
    keep(given);
    close();
    question.again();
  };
  return (
    <Dialog title={t("keyDialog.title")} close={close}>
      <form class="key-form" onSubmit={send}>
        <p>{t("keyDialog.text")}</p>
        {question.wrong && (
          <p class="wrong" role="alert">
            {t("keyDialog.wrong")}
          </p>
        )}
        <label>
          {t("keyDialog.label")}
          <input ref={input} type="password" autocomplete="off" autofocus required />
        </label>
        <button type="submit" class="strong-button">
          {t("keyDialog.send")}
        </button>
      </form>
    </Dialog>
  );
}
