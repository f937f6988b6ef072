"""The website that ``make test`` builds from the committed outputs, served and opened."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from chapters import ROOT

SITE = ROOT / "_build" / "committed" / "_build" / "html"
# The shell has no window to furnish: it opens a page in half the time.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

needs_site = pytest.mark.skipif(not SITE.exists(), reason="no site: `make test` builds it first")


@contextmanager
def opened_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        installed = [path for name in BROWSERS if (path := shutil.which(name))]
        path = Path([*installed, playwright.chromium.executable_path][0])
        if not path.exists():
            pytest.skip("no Chromium: CONTRIBUTING.md says how to get it")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(SITE))) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


@contextmanager
def visit(browser: Browser, base: str, name: str, **context: Any) -> Iterator[tuple[Page, list]]:
    """Open a page; with it comes a list of all that goes wrong."""
    trouble: list[str] = []
    page = browser.new_page(**context)
    page.on("console", lambda m: trouble.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("requestfailed", lambda request: trouble.append(f"failed: {request.url}"))
    page.on("response", lambda r: trouble.append(f"{r.status}: {r.url}") if r.status >= 400 else "")
    inside = (base, "data:", "blob:")
    page.on(
        "request",
        lambda r: None if r.url.startswith(inside) else trouble.append(f"outside: {r.url}"),
    )
    page.goto(base + name, wait_until="load")
    try:
        yield page, trouble
    finally:
        page.close()


def wait_for_step(page: Page, count: int) -> None:
    """Until the playground has come so far."""
    reached = "n => +document.querySelector('[data-value=steps]').innerText.slice(5) >= n"
    page.wait_for_function(reached, arg=count, timeout=60_000)
