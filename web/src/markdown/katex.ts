/** KaTeX, in a file of its own. Its style sheet is part of the page's. */

export { default } from "katex";
