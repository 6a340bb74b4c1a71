/** A window over the page; the browser keeps the focus in it and closes it with Escape. */

import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { t } from "../words/words";
import { IconButton } from "./Button";

interface Props {
  title: string;
  close: () => void;
  children: ComponentChildren;
}

export function Dialog({ title, close, children }: Props) {
  const place = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    place.current!.showModal();
  }, []);
  return (
    <dialog
      ref={place}
      aria-labelledby="dialog-title"
      onClose={close}
      onClick={(event) => {
        if (event.target === place.current) close(); // outside: the dialog itself has no padding
      }}
    >
      <div class="dialog">
        <header>
          <h2 id="dialog-title">{title}</h2>
          <IconButton icon="close" name={t("dialog.close")} onClick={close} />
        </header>
        {children}
      </div>
    </dialog>
  );
}
