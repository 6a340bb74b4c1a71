"""The browser of the browser tier: a Chromium of the system, driven by playwright."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec


def find() -> str | None:
    """Its path: $QWENKIT_TEST_BROWSER, or what is called chromium here."""
    return os.environ.get("QWENKIT_TEST_BROWSER") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


def missing() -> str | None:
    """Why the tier cannot run, if it cannot."""
    if find_spec("playwright") is None:
        return "playwright is not installed (extra dev)"
    return None if find() else "no chromium; install Debian's, or name one in QWENKIT_TEST_BROWSER"
