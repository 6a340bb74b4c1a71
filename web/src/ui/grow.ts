/** Make a text area as high as its text; the style sheet says where that ends. */

export function grow(area: HTMLTextAreaElement): void {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
