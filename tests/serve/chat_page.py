"""The chat page in a browser, as a person sees it. Needs playwright and a Chromium of the system."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

WAIT_MS = 30_000  # for what must happen at some time; only a failing test waits so long


class ChatPage:
    """A browser's own storage, and one tab of it with the page.

    What goes wrong in it is kept in `complaints`: errors, requests to anybody else, and whatever the policy
    had to forbid.
    """

    def __init__(self, browser: Browser, url: str, **looks: Any) -> None:
        self.url = url
        self.complaints: list[str] = []
        self.requests: list[str] = []
        looks.setdefault("viewport", {"width": 1200, "height": 800})
        looks.setdefault("locale", "en-GB")
        self.context = browser.new_context(**looks)
        self.context.set_default_timeout(WAIT_MS)
        self.page: Page = self.context.new_page()
        self.page.on("request", self._on_request)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._on_console)
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))
        self.open()

    def open(self) -> None:
        self.page.goto(self.url)
        self.page.wait_for_selector("#composer")

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_selector("#composer")

    def say(self, text: str, *, ended: bool = True) -> None:
        """Send a message; `ended`: and wait for the end of the reply."""
        self.page.fill("#composer", text)
        self.page.press("#composer", "Enter")
        self.wait(self.page.locator(".bubble").last, re.compile(f"^{re.escape(text.split(chr(10))[0])}"))
        if ended:
            self.wait_for_end()

    def wait_for_end(self) -> None:
        self.button("Send").wait_for()

    def wait(self, where: Locator, words: str | re.Pattern[str]) -> None:
        """Until this place has these words."""
        where.filter(has_text=words).first.wait_for(state="attached")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def texts(self) -> list[str]:
        """Questions and replies that are shown, in order."""
        return [text.strip() for text in self.page.locator(".bubble, .prose").all_inner_texts()]

    @property
    def last(self) -> Locator:
        """The last reply."""
        return self.page.locator(".reply").last

    def kept(self) -> Any:
        """What the browser has stored, when all of it is written."""
        self.page.wait_for_timeout(600)
        return self.page.evaluate(
            """() => new Promise((done) => {
                indexedDB.open("qwenkit").onsuccess = ({target}) => {
                    const store = target.result.transaction("conversations").objectStore("conversations");
                    store.getAll().onsuccess = (event) => done(event.target.result);
                };
            })"""
        )

    def _on_request(self, request: Any) -> None:
        self.requests.append(request.url)
        if not request.url.startswith((f"{self.url}/", "blob:", "data:")):
            self.complaints.append(f"request: {request.url}")

    def _on_console(self, message: Any) -> None:
        # A refusal of the server is told by the browser too; the tests that provoke one look at the page.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)
