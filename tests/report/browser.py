"""A page in Debian's chromium, with the network off and every complaint noted."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = (1280, 900), (390, 844)
SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
"""Where tests leave pictures of what they saw, for people to look at."""


def chromium(own: str) -> str:
    """Debian's chromium, or playwright's own; skips the test where there is neither."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and Path(own).exists():
        found = own
    if found is None:
        pytest.skip("no chromium (apt-get install chromium, or: playwright install chromium)")
    return found


def keep(page: Any, name: str) -> None:
    """Leave a picture of the whole page."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


class Visit:
    """A page that is open, and what went wrong on it."""

    def __init__(self, page):
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: self._note(request.url))

    def _note(self, url: str) -> None:
        if not url.startswith("data:"):
            self.requests.append(url)


@contextmanager
def browsing() -> Iterator[Any]:
    """A chromium without windows, and with a profile of its own that is gone afterwards."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        path = chromium(driver.chromium.executable_path)
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any, file: Path, size: tuple[int, int] = DESKTOP, dark: bool = False
) -> Iterator[Visit]:
    """Open a file from disk, offline, with nothing left of earlier visits."""
    context = browser.new_context(
        offline=True,
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
    )
    visit = Visit(context.new_page())
    visit.page.set_default_timeout(10_000)
    visit.page.goto(file.as_uri())
    yield visit
    context.close()


def colours(page: Any, canvases: str) -> list[list[list[int]]]:
    """Red, green and blue of every patch, map by map."""
    read = """c => {
        const copy = new OffscreenCanvas(c.width, c.height).getContext("2d", {willReadFrequently: true});
        copy.drawImage(c, 0, 0);
        return [...copy.getImageData(0, 0, c.width, c.height).data];
    }"""
    maps = [canvas.evaluate(read) for canvas in page.locator(canvases).all()]
    return [[data[i : i + 3] for i in range(0, len(data), 4)] for data in maps]
