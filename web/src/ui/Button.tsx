/** A button that is a drawing, with its name for those who do not see it. */

import type { ButtonHTMLAttributes } from "preact";
import { Icon, type Shape } from "./Icon";

type Props = ButtonHTMLAttributes<HTMLButtonElement> & {
  icon: Shape;
  name: string;
};

export function IconButton({ icon, name, class: extra, ...rest }: Props) {
  return (
    <button type="button" class={`icon-button ${extra ?? ""}`} aria-label={name} title={name} {...rest}>
      <Icon of={icon} />
    </button>
  );
}
