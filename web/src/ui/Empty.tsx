/** Before the first message: a greeting, and something to begin with. */

import { shown } from "../store/conversations";
import { t, type Word } from "../words/words";
import { suggest } from "./Composer";

const IDEAS: Word[] = ["empty.one", "empty.two", "empty.three", "empty.four"];

export function Empty() {
  return (
    <div class="empty">
      <h1>{t("empty.title")}</h1>
      <p>{t("empty.subtitle")}</p>
      <ul>
        {IDEAS.map((idea) => (
          <li key={idea}>
            <button type="button" onClick={() => suggest(shown.value.id, t(idea))}>
              {t(idea)}
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}
