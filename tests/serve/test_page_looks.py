"""The page in Chromium: what a model's words become, keys, languages, dark and narrow, and for whom."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_page import ChatPage
from page_server import HOLD, PageServer, ScriptedEngine

pytestmark = pytest.mark.browser

Open = Callable[..., ChatPage]
Serve = Callable[..., PageServer]
AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"

RICH = r"""## A heading

Words in **bold**, *italics* and `code`; **“重点”**是中文。Costs \$5, or $6 and $7.
A second line.

1. Euler: $e^{i\pi} + 1 = 0$ and \(a^2\)
2. Code:

   ```python
   def double(x: int) -> int:
       return 2 * x  # twice
   ```

$$x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}$$

| name | value |
|------|------:|
| a    |     1 |

- [x] done
- [ ] open

[A link](https://example.org/page?q=1) ends it."""

HOSTILE = r"""<script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 1"> <svg onload="window.hacked = 1"></svg>

[one](javascript:window.hacked=1) [two](JaVaScRiPt:window.hacked=1) [three](data:text/html,<b>)
[four](vbscript:x "t\" onclick=window.hacked=1") <a href="javascript:window.hacked=1">five</a>

![picture](https://evil.example/picture.png) ![inline](data:image/png;base64,AAAA)

<iframe src="https://evil.example/"></iframe><style>* { display: none }</style><base href="//evil.example/">

$\href{javascript:window.hacked=1}{x}$ $\includegraphics{//evil.example/b.png}$ $\htmlStyle{color:red}{y}$

```html"><script>window.hacked=1</script>
</code></pre><script>window.hacked = 1</script>
```

https://example.org/"onmouseover="window.hacked=1

<div style="position:fixed;inset:0"><form action="https://evil.example/"><button>Free</button></form></div>"""


def said(serve: Serve, open_page: Open, text: str, **looks: object) -> ChatPage:
    """A page on which the model has said this."""
    chat = open_page(serve(ScriptedEngine(scripts={"go": [[text]]})), **looks)
    chat.say("go")
    return chat


def test_markdown_code_and_mathematics(serve: Serve, open_page: Open) -> None:
    chat = said(serve, open_page, RICH)
    prose = chat.last.locator(".prose")
    assert prose.locator("h2").inner_text() == "A heading"
    assert prose.locator("strong").all_inner_texts() == ["bold", "“重点”"]
    assert "Costs $5, or $6 and $7.\nA second line." in prose.locator("p").first.inner_text()
    assert prose.locator("td").last.evaluate("e => getComputedStyle(e).textAlign") == "right"
    assert prose.locator(".task").all_inner_texts() == ["☑", "☐"]
    link = prose.get_by_role("link", name="A link")
    assert link.get_attribute("href") == "https://example.org/page?q=1"
    assert link.get_attribute("target") == "_blank"
    assert "noopener" in (link.get_attribute("rel") or "")
    # Colours and formulas come in files of their own.
    prose.locator(".hljs-keyword", has_text="def").wait_for()
    assert prose.locator(".code-head span").inner_text() == "python"
    prose.locator(".math .katex").nth(2).wait_for()
    assert prose.locator("annotation").first.text_content() == r"e^{i\pi} + 1 = 0"
    assert prose.locator(".math.display .mfrac").count() == 1
    height = prose.locator(".math.display").bounding_box()
    assert height is not None
    assert height["height"] > 35  # its inline styles were let through
    assert chat.page.evaluate("document.fonts.check('16px KaTeX_Main')")


def test_text_may_come_in_any_pieces(serve: Serve, open_page: Open) -> None:
    whole = said(serve, open_page, RICH)
    pieces = [RICH[i : i + 3] for i in range(0, len(RICH), 3)]
    chat = open_page(serve(ScriptedEngine(scripts={"go": [pieces]}, pause=0.003)))
    chat.say("go")
    for one in (whole, chat):
        one.last.locator(".math .katex").nth(2).wait_for()
        one.last.locator(".hljs-keyword").first.wait_for()
    html = [one.last.locator(".prose").inner_html() for one in (whole, chat)]
    assert html[0] == html[1]


def test_code_and_replies_can_be_copied(serve: Serve, open_page: Open) -> None:
    chat = said(serve, open_page, "```sh\necho 1\n```", permissions=["clipboard-read", "clipboard-write"])
    chat.button("Copy code").click()
    chat.wait(chat.last, "Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "echo 1"
    chat.last.get_by_label("Copy", exact=True).click()
    chat.last.get_by_label("Copied", exact=True).wait_for()
    assert chat.page.evaluate("navigator.clipboard.readText()") == "```sh\necho 1\n```"


def test_hostile_words_do_nothing(serve: Serve, open_page: Open) -> None:
    chat = said(serve, open_page, HOSTILE)
    chat.last.locator(".math .katex").first.wait_for()
    chat.last.locator(".prose").hover()
    assert chat.page.evaluate("window.hacked") is None
    prose = chat.last.locator(".prose")
    for forbidden in ("script", "img", "svg:not(.katex svg)", "iframe", "style", "base", "form", "[onerror]",
                      "[onload]", "[onclick]", "[onmouseover]"):  # fmt: skip
        assert prose.locator(forbidden).count() == 0, forbidden
    for link in prose.locator("a").all():
        assert (link.get_attribute("href") or "").startswith("https://")
        assert "noopener" in (link.get_attribute("rel") or "")
    assert prose.get_by_role("link", name="picture").count() == 1  # shown as a link, not fetched
    assert "<script>window.hacked = 1</script>" in prose.inner_text()  # and shown as what it is
    assert prose.is_visible()
    assert not [url for url in chat.requests if "evil" in url]


def test_hostile_titles_and_questions_do_nothing(serve: Serve, open_page: Open) -> None:
    chat = open_page(serve())
    chat.say('<img src=x onerror="window.hacked=1">')
    assert chat.page.evaluate("window.hacked") is None
    assert chat.page.locator("img").count() == 0
    assert chat.page.locator(".row-title").inner_text() == '<img src=x onerror="window.hacked=1">'


def test_policy_stops_what_the_page_would_not(serve: Serve, open_page: Open) -> None:
    """If hostile HTML did get in: no script runs, nothing is fetched."""
    chat = open_page(serve())
    refused = """(act) => { try { eval(act); } catch (error) { return error.name; } }"""
    acts = [
        "document.body.innerHTML += '<b>x</b>'",
        "document.body.setAttribute('onclick', 'window.hacked = 1')",
        "document.createElement('script').src = 'https://evil.example/a.js'",
    ]
    assert [chat.page.evaluate(refused.replace("eval(act)", act)) for act in acts] == ["TypeError"] * 3
    blocked = chat.page.evaluate(
        """() => new Promise((done) => {
            const seen = [];
            document.addEventListener("securitypolicyviolation", (event) => {
                if (seen.push(event.effectiveDirective) === 2) done(seen.sort());
            });
            document.createElement("img").src = "https://evil.example/a.png";
            fetch("https://evil.example/").catch(() => 0);
        })"""
    )
    assert blocked == ["connect-src", "img-src"]
    chat.complaints.clear()  # what was provoked here


def test_keys(serve: Serve, open_page: Open) -> None:
    server = serve(ScriptedEngine(scripts={"wait": [["Words", HOLD]]}))
    chat = open_page(server)
    keyboard = chat.page.keyboard
    assert chat.page.evaluate("document.activeElement.id") == "composer"
    keyboard.press("?")
    dialog = chat.page.get_by_role("dialog", name="Keyboard shortcuts")
    dialog.wait_for()
    keyboard.press("Escape")
    dialog.wait_for(state="detached")
    keyboard.type("line one")
    keyboard.press("Shift+Enter")
    keyboard.type("two? /")
    assert chat.page.input_value("#composer") == "line one\ntwo? /"
    # An input method's Enter chooses characters and sends nothing.
    chat.page.dispatch_event("#composer", "keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    assert chat.page.input_value("#composer") == "line one\ntwo? /"
    keyboard.press("Enter")
    chat.wait(chat.last, "two? /")
    chat.wait_for_end()
    keyboard.press("ArrowUp")
    edit = chat.page.get_by_label("Edit the message")
    assert edit.input_value() == "line one\ntwo? /"
    assert edit.evaluate("e => e === document.activeElement")
    keyboard.press("Escape")
    edit.wait_for(state="detached")
    keyboard.press("Control+k")
    chat.page.locator(".empty").wait_for()
    keyboard.type("wait")
    keyboard.press("Enter")
    chat.wait(chat.last, "Words")
    keyboard.press("Escape")
    chat.wait(chat.last, "Stopped.")
    keyboard.press("Control+,")
    chat.page.get_by_label("System prompt").wait_for()
    keyboard.press("Escape")
    chat.page.get_by_label("System prompt").wait_for(state="detached")
    keyboard.press("Control+b")
    chat.page.locator(".sidebar").wait_for(state="detached")
    keyboard.press("Control+Shift+f")
    chat.page.locator("#search:focus").wait_for()


def test_language_is_the_browsers_or_the_chosen_one(serve: Serve, open_page: Open) -> None:
    server = serve()
    chat = open_page(server, locale="zh-CN")
    assert chat.page.get_by_role("heading").inner_text() == "想聊些什么？"
    assert chat.page.locator("html").get_attribute("lang") == "zh-Hans"
    chat.page.fill("#composer", "你好")
    chat.page.press("#composer", "Enter")
    chat.wait(chat.last, "3 个 token")
    chat.button("设置").click()
    chat.page.get_by_role("radio", name="English").check()
    chat.wait(chat.last, "3 tokens")
    chat.reload()
    assert chat.page.locator("html").get_attribute("lang") == "en"
    chat.wait(chat.last, "3 tokens")


def test_dark_is_the_systems_or_the_chosen_one(serve: Serve, open_page: Open) -> None:
    server = serve()
    brightness = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    dark = open_page(server, color_scheme="dark")
    assert dark.page.evaluate(brightness) < 50
    chat = open_page(server, color_scheme="light")
    assert chat.page.evaluate(brightness) > 200
    chat.button("Settings").click()
    chat.page.get_by_role("radio", name="Dark").check()
    assert chat.page.evaluate(brightness) < 50
    chat.reload()
    assert chat.page.evaluate(brightness) < 50


WIDE = "\n\n".join(
    (
        "x" * 300,
        f"```\n{'y' * 300}\n```",
        f"| {'column | ' * 12}\n|{'--|' * 12}\n| {'cell | ' * 12}",
        f"$${'+'.join(f'x_{{{i}}}' for i in range(60))}$$",
    )
)


def test_nothing_is_wider_than_a_phone(serve: Serve, open_page: Open) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    engine = ScriptedEngine(scripts={"z" * 200: [[WIDE]]})
    chat = open_page(serve(engine), **phone)

    def fits() -> bool:
        widest = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
        assert chat.page.evaluate(widest) <= 390
        boxes = chat.page.locator(".composer-box, .bubble, .code, .table, .bar, .settings").all()
        return all((box.bounding_box() or {"x": 0, "width": 0})["width"] <= 390 for box in boxes)

    assert fits()
    chat.say("z" * 200)
    chat.last.locator(".katex").first.wait_for()
    assert fits()
    chat.button("Show conversations").click()
    assert fits()
    chat.page.get_by_role("button", name=re.compile("^zzz")).click()
    chat.page.locator(".sidebar").wait_for(state="detached")
    chat.button("Settings").click()
    assert fits()
    assert chat.page.get_by_label("Temperature", exact=True).bounding_box() is not None
    chat.button("Close settings").last.click()
    assert chat.page.locator("#composer").evaluate("e => parseFloat(getComputedStyle(e).fontSize)") >= 16


def test_reply_is_read_out_by_sentences(serve: Serve, open_page: Open) -> None:
    engine = ScriptedEngine(scripts={"go": [["First one. ", "Second is not ", HOLD, "yet whole."]]})
    chat = open_page(serve(engine))
    chat.say("go", ended=False)
    live = chat.page.locator("[aria-live=polite][role=log]")
    chat.wait(live, "First one.")
    assert "Second" not in (live.text_content() or "")
    engine.go_on.set()
    chat.wait(live, "Reply finished.")


def test_scrolling_away_is_respected(serve: Serve, open_page: Open) -> None:
    lines = [f"Line {i}\n\n" for i in range(60)]
    engine = ScriptedEngine(scripts={"go": [[*lines, HOLD, *lines]]})
    chat = open_page(serve(engine))
    chat.say("go", ended=False)
    chat.wait(chat.last, "Line 59")
    top = "document.querySelector('.thread').scrollTop"
    chat.page.wait_for_function(f"{top} > 500")  # it follows the end
    chat.page.evaluate(f"{top} = 100")
    chat.button("Jump to the latest").wait_for()
    engine.go_on.set()
    chat.wait_for_end()
    assert chat.page.evaluate(top) == 100
    chat.button("Jump to the latest").click()
    chat.page.wait_for_function(f"{top} > 1000")


def test_less_motion_where_it_is_asked_for(serve: Serve, open_page: Open) -> None:
    engine = ScriptedEngine(scripts={"go": [["Words", HOLD]]})
    chat = open_page(serve(engine), reduced_motion="reduce")
    chat.say("go", ended=False)
    chat.wait(chat.last, "Words")
    assert chat.page.evaluate("document.getAnimations().length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(serve: Serve, open_page: Open, scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip("browser tier: axe-core is not installed; run scripts/build-web")
    # The rules are handed to the page as a program of its own: its policy would not let it in.
    chat = open_page(serve(ScriptedEngine(scripts={"go": [[RICH]]})), color_scheme=scheme, bypass_csp=True)
    chat.page.add_script_tag(path=AXE)

    def faults() -> list[str]:
        found = chat.page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'best-practice']})")
        return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found["violations"]
                for node in one["nodes"]]  # fmt: skip

    assert faults() == []
    chat.say("go")
    chat.last.locator(".math .katex").nth(2).wait_for()
    chat.last.locator(".hljs-keyword").first.wait_for()
    assert faults() == []
    chat.button("Settings").click()
    assert faults() == []
    chat.button("Keyboard shortcuts").click()
    assert faults() == []
