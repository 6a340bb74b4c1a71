"""Take the pictures of docs/web.md: real conversations with the demo model, in Chromium.

usage: python docs/images/shoot.py URL [FOLDER]     (of a running `qwenkit serve`)

Needs playwright, chromium, pngquant, and the fonts Inter, Noto Sans CJK and JetBrains Mono as the system's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

DESKTOP = {"viewport": {"width": 1240, "height": 800}, "device_scale_factor": 1.5}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
WAIT_MS = 300_000


def open_page(browser: Browser, url: str, **looks: Any) -> Page:
    context = browser.new_context(**looks)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("span.model")
    return page


def say(page: Page, text: str) -> None:
    """Ask, and wait for the end of the reply."""
    page.fill("#composer", text)
    page.press("#composer", "Enter")
    page.locator(".reply.last[aria-busy=false] .speed span").nth(2).wait_for()
    page.wait_for_timeout(600)


def set_up(page: Page, settings: str, **values: str) -> None:
    """Fill fields of the settings panel by id, and leave it open or close it again."""
    page.get_by_role("button", name=settings, exact=True).click()
    for name, value in values.items():
        page.fill(f"#{name}", value)


def from_the_top(page: Page) -> None:
    page.mouse.move(620, 799)
    page.locator(".thread").evaluate("e => e.scrollTop = 0")
    page.wait_for_timeout(400)


def new_chat(page: Page, **values: str) -> None:
    page.keyboard.press("Control+k")
    for name, value in values.items():
        page.fill(f"#{name}", value)


def main(url: str, folder: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        light(browser, url, folder)
        dark(browser, url, folder)
        chinese(browser, url, folder)
        phone(browser, url, folder)
        browser.close()
    pictures = map(str, folder.glob("web-*.png"))
    subprocess.run(["pngquant", "--ext=.png", "--force", "--strip", *pictures], check=True)


def light(browser: Browser, url: str, folder: Path) -> None:
    page = open_page(browser, url, color_scheme="light", **DESKTOP)
    set_up(page, "Settings", seed="3", max_tokens="24")
    for other in ("Name three uses of a Bloom filter.", "What does HTTP 429 mean?"):
        say(page, other)
        new_chat(page, seed="3", max_tokens="24")
    page.fill("#max_tokens", "420")
    page.keyboard.press("Control+,")
    say(page, "Write a Python function that reverses the words of a sentence, and show how to call it.")
    from_the_top(page)
    page.screenshot(path=folder / "web-light.png")


def dark(browser: Browser, url: str, folder: Path) -> None:
    page = open_page(browser, url, color_scheme="dark", **DESKTOP)
    set_up(page, "Settings", temperature="0.3", seed="4", max_tokens="400")
    say(page, "State the quadratic formula in LaTeX, and say in two sentences what the discriminant tells.")
    from_the_top(page)
    page.screenshot(path=folder / "web-dark.png")


def chinese(browser: Browser, url: str, folder: Path) -> None:
    page = open_page(browser, url, color_scheme="light", locale="zh-CN", **DESKTOP)
    set_up(page, "设置", seed="2", max_tokens="360")
    page.keyboard.press("Control+,")
    say(page, "用 Python 写一个快速排序函数，再用三点说明它的原理。")
    from_the_top(page)
    page.screenshot(path=folder / "web-chinese.png")


def phone(browser: Browser, url: str, folder: Path) -> None:
    page = open_page(browser, url, color_scheme="dark", **PHONE)
    set_up(page, "Settings", temperature="0.3", seed="5", max_tokens="200")
    page.get_by_role("button", name="Close settings").last.click()
    say(page, "Show a bash command that lists files by size, and explain its options.")
    page.touchscreen.tap(195, 700)
    page.wait_for_timeout(300)
    page.screenshot(path=folder / "web-phone.png")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
