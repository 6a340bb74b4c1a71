/** Where the page begins. */

import { render } from "preact";
import { load } from "./store/conversations";
import { look } from "./store/server";
import { App } from "./ui/App";
import "./style/page.css";

void load();
void look();
render(<App />, document.getElementById("page")!);
