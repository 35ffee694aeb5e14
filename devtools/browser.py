"""A Chromium for the tests: one that is on this machine, or one that is put there.

python devtools/browser.py FILE       finds or installs one and writes where it is
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge", "microsoft-edge")
_PROGRAMS = [os.environ.get(name, "") for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")]
_PLACES = [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    *(rf"{folder}\Microsoft\Edge\Application\msedge.exe" for folder in _PROGRAMS if folder),
    *(rf"{folder}\Google\Chrome\Application\chrome.exe" for folder in _PROGRAMS if folder),
]


def find_browser() -> str | None:
    """A browser of the Chromium family: CLEAR_BROWSER, on the path, at its usual location, or Playwright's own."""
    named = os.environ.get("CLEAR_BROWSER")
    if named:
        return named
    for name in NAMES:
        if found := shutil.which(name):
            return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return next((place for place in (*_PLACES, own) if Path(place).is_file()), None)


def install_browser() -> None:
    """With Debian's packages where we may, else by Playwright's own download. Raises CalledProcessError."""
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], check=False)
        subprocess.run(["apt-get", "install", "-qy", "--no-install-recommends", "chromium"], check=True)
    else:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)


if __name__ == "__main__":
    if find_browser() is None:
        install_browser()
    browser = find_browser()
    if browser is None:
        sys.exit("no chromium was found")
    Path(sys.argv[1]).write_text(browser, encoding="utf-8")
