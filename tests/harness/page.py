"""ComfyUI's own page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from .browser import find_browser

# Nothing but the server under test is to be reached, and no sandbox where tests run as root.
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@contextmanager
def browser() -> Iterator[Browser]:
    path = find_browser()
    assert path, "there is no browser: run the tests with python dev.py test"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield opened
        opened.close()


def open_page(browser: Browser, address: str) -> Page:
    """A page that has started, in a window of 1600 x 1000."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    # What lies over the graph: the welcome of a new person, a small map, what a workflow lacks.
    known = {
        "Comfy.TutorialCompleted": True,
        "Comfy.Minimap.Visible": False,
        "Comfy.Workflow.ShowMissingModelsWarning": False,
    }
    assert page.request.post(f"{address}/settings", data=known).ok
    load(page, address)
    return page


def load(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
    # The last workflow, or the default one, comes a moment later.
    page.wait_for_function("window.app.extensionManager.workflow?.activeWorkflow", timeout=120_000)
