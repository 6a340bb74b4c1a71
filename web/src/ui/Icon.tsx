/** The page's drawings: lines of one weight on a square of 24. */

const SHAPES = {
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM20 20l-4-4",
  sidebar: "M4 5h16v14H4zM9.5 5v14",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.8v4.4M9 14.8v4.4",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7.5 7.5h9v9h-9z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 12.5l4.5 4.5L19 7",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  play: "M8 5.5v13l10-6.5z",
  left: "M14.5 6l-6 6 6 6",
  right: "M9.5 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  close: "M6 6l12 12M18 6L6 18",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l.8 12.5h8.4L17 7M10.5 10.5v6M13.5 10.5v6",
  download: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
  upload: "M12 16V5M7 9.5l5-5 5 5M5 20h14",
  tool: "M14.5 6.5a4 4 0 0 1 5-1L16.8 8.2l.5 2.5 2.5.5 2-2.7a4.6 4.6 0 0 1-6.4 5L8.6 20.3a2.1 2.1 0 0 1-3-3l6.8-6.8a4.6 4.6 0 0 1 2.1-4z",
  warning: "M12 4.5L21 19.5H3zM12 10.5v4M12 16.9v.2",
} as const;

export type Shape = keyof typeof SHAPES;

export function Icon({ of }: { of: Shape }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
      <path d={SHAPES[of]} />
    </svg>
  );
}
