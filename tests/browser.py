"""Chromium without a window, to look at a page: what it complains of, what it asks the network for, a screenshot.

python -m tests.browser output/imdb-train-0123456789/report.html docs/report.png
"""

import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Where one is installed; playwright's own would have to be downloaded."""

_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@dataclass
class Seen:
    """What came of opening a page."""

    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, uncaught exceptions, dialogs."""
    requests: list[str] = field(default_factory=list)
    """Every URL that was asked for."""
    width: int = 0
    """Of the page's content, CSS pixels: above the window's, the page scrolls sideways."""
    text: str = ""


def look(
    page: Path,
    *,
    width: int = 1280,
    scheme: Literal["light", "dark"] = "light",
    screenshot: Path | None = None,
    height: int | None = None,
) -> Seen:
    """Open a page from the disk in a fresh profile, without a network.

    Args:
        page: the HTML file.
        width: the window's, CSS pixels.
        scheme: what the user prefers.
        screenshot: where to put one.
        height: of the screenshot; None for the whole page.
    """
    seen = Seen()
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=_FLAGS,
            viewport={"width": width, "height": height or 900},
            color_scheme=scheme,
            offline=True,
        )
        tab = browser.new_page()
        tab.on("console", lambda said: seen.complaints.append(f"{said.type}: {said.text}"))
        tab.on("pageerror", lambda error: seen.complaints.append(str(error)))
        tab.on("dialog", lambda dialog: seen.complaints.append(dialog.message))
        tab.on("request", lambda request: seen.requests.append(request.url))
        tab.goto(page.absolute().as_uri())
        seen.width = tab.evaluate("document.documentElement.scrollWidth")
        seen.text = tab.inner_text("body")
        if screenshot:
            tab.screenshot(path=screenshot, full_page=height is None)
        browser.close()
    return seen


if __name__ == "__main__":
    print(look(Path(sys.argv[1]), screenshot=Path(sys.argv[2]), height=1800))
