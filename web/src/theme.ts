/** Runs before the first paint, so that a chosen theme does not flash the other one. */

try {
  const kept = JSON.parse(localStorage.getItem("qwenkit-preferences") ?? "{}") as { theme?: string };
  if (kept.theme === "light" || kept.theme === "dark") document.documentElement.dataset.theme = kept.theme;
} catch {
  // No storage, no preference.
}
