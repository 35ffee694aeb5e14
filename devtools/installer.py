"""Install packages into the environment: with uv where it can replace pip, else with pip.

uv takes about a quarter of pip's time, but does not read pip's configuration, and without it would take packages from
elsewhere. So the configuration is translated. Where a setting has no translation, or uv fails for any reason, pip
installs, and its error is the one that is explained.

Standard library only: dev.py imports this before there is an environment.
"""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

from .steps import DEV, DevError, run_step

# pip's setting -> the environment variable of uv, and what separates several values there.
_TRANSLATED = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}
# These do not change what is installed.
_IGNORED = {
    "cache-dir",
    "disable-pip-version-check",
    "no-cache-dir",
    "no-color",
    "no-input",
    "no-warn-script-location",
    "progress-bar",
    "quiet",
    "require-virtualenv",
    "retries",
    "root-user-action",
    "verbose",
}


def install(python: Path, title: str, *arguments: str) -> None:
    """`pip install` with these arguments. Raises DevError."""
    env = _uv_environment(python)
    if env is not None and _has_uv(python):
        try:
            run_step(title, [python, "-m", "uv", "pip", "install", "--python", python, *arguments], env)
            return
        except DevError:
            title = f"{title} with pip instead"
    run_step(title, [python, "-m", "pip", "install", *arguments])


def _has_uv(python: Path) -> bool:
    """Installs it where it is missing."""
    if subprocess.run([python, "-m", "uv", "--version"], capture_output=True).returncode == 0:
        return True
    try:
        run_step("Installing uv", [python, "-m", "pip", "install", "--only-binary=:all:", "uv>=0.9"])
    except DevError:
        return False
    return True


def _uv_environment(python: Path) -> dict[str, str] | None:
    """This process's environment with pip's configuration in uv's variables; None if that is impossible."""
    listed = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True)
    if listed.returncode != 0:
        return None
    settings: dict[str, tuple[int, str]] = {}
    sections = ("global", "install", ":env:")  # the later one wins
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in sections and name not in _IGNORED:
            settings[name] = max(settings.get(name, (-1, "")), (sections.index(section), str(ast.literal_eval(value))))
    if not settings.keys() <= _TRANSLATED.keys():
        return None
    # pip's way to choose: the best version that any of the indexes has. uv's files stay below .dev too.
    env = {**os.environ, "UV_INDEX_STRATEGY": "unsafe-best-match", "UV_CACHE_DIR": str(DEV / "uv")}
    for name, (_, value) in settings.items():
        variable, separator = _TRANSLATED[name]
        env[variable] = separator.join(value.split())
    return env
