/** Short news, at the lower edge. */

import { dismiss, toasts } from "../store/toasts";
import { t } from "../words/words";
import { IconButton } from "./Button";

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {toasts.value.map(({ id, text, action }) => (
        <div class="toast" key={id}>
          <span>{text}</span>
          {action && (
            <button
              type="button"
              class="quiet-button"
              onClick={() => {
                action.run();
                dismiss(id);
              }}
            >
              {action.label}
            </button>
          )}
          <IconButton icon="close" name={t("dialog.close")} onClick={() => dismiss(id)} />
        </div>
      ))}
    </div>
  );
}
