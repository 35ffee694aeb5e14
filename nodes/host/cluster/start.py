"""What starts drivers and workers: a node with `machines`, and the environment of a process that is to be a worker."""

from __future__ import annotations

import logging
import os
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
import torch

from ....clear_core.cluster import messages as said
from ....clear_core.cluster.channel import read_token
from ....clear_core.cluster.measure import matrix_rate
from ...compat import host_version, pack_version
from ...options.machines import JoinAddress, parse_address
from ..server import running_server
from .driver import Driver
from .graph import guided_model, model_graph, node_classes
from .member import Member
from .session import Session
from .worker import Worker

_log = logging.getLogger("clear-attention")

JOIN, TOKEN = "CLEAR_WORKER_JOIN", "CLEAR_WORKER_TOKEN_FILE"
"""Of the environment: they make a process a worker."""
EVENT = "clear_attention.machines"
"""The message to the page when a driver's workers have changed: {"machines": the driver's address}."""
_KEY = "clear_attention_driver"  # on the server's application


def machines_session(machines: str, dynprompt: Any, node_id: str, name: str, model: Any) -> Session | None:
    """The machines that join at a node's `machines`, for the MODEL that its input `name` is linked to; None for "".

    Raises ValueError for what is no address, where nobody can listen there, or for a MODEL that others cannot load.
    """
    address = parse_address(machines)
    if address is None:
        return None
    graph, node, output = model_graph(dynprompt, node_id, name)
    return Session(_driver(address), graph, node, output, model, everyone=address.everyone)


def guided_session(machines: str, dynprompt: Any, node_id: str, name: str, guider: Any) -> Session | None:
    """As `machines_session`, for the MODEL of the GUIDER that the input is linked to.

    Also raises ValueError for a guider whose node takes no MODEL or several.
    """
    if parse_address(machines) is None:
        return None
    maker, made_from = guided_model(dynprompt, node_id, name, node_classes())
    return machines_session(machines, dynprompt, maker, made_from, guider.model_patcher)


def token_file() -> Path:
    """The driver's own token, made where there is none: only its owner may read it."""
    path = Path(folder_paths.get_user_directory()) / "clear_attention_token.txt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(secrets.token_urlsafe(48) + "\n")
    return path


def start_worker() -> Worker | None:
    """A worker, where the environment asks for one. Raises ValueError for settings that are wrong."""
    join = parse_address(os.environ.get(JOIN, ""), JOIN)
    server = running_server()
    if join is None or server is None:
        return None
    worker = Worker(join, read_token(Path(os.environ.get(TOKEN, ""))), lru_cache(maxsize=1)(_hello), server)
    worker.start()
    return worker


def _driver(address: JoinAddress) -> Driver:
    """This process's, at one address at a time; kept from prompt to prompt on the server."""
    server = running_server()
    if server is None:
        raise ValueError("machines needs ComfyUI's server, which does not run here: leave it empty")
    known: Driver | None = getattr(server, _KEY, None)
    if known is not None and known.address == address:
        return known
    if known is not None:
        known.close()
        setattr(server, _KEY, None)
    try:
        driver = Driver(
            address, read_token(token_file()), _versions, lambda: server.send_sync(EVENT, {"machines": str(address)})
        )
    except OSError as error:
        raise ValueError(
            f"machines is {address}; this machine cannot listen there ({error.strerror or error}): use an address of "
            "one of its network interfaces and a free port"
        ) from error
    setattr(server, _KEY, driver)
    _log.info("CLEAR Multi-GPU: other machines join at %s, each with a copy of %s", address, token_file())
    return driver


def known_workers(machines: str) -> tuple[Member, ...] | None:
    """The workers that have joined at a node's `machines`; None where nothing listens there. Raises ValueError."""
    address, driver = parse_address(machines), getattr(running_server(), _KEY, None)
    return tuple(driver.members) if driver is not None and driver.address == address else None


def _versions() -> dict[str, str]:
    return {"pack_version": pack_version(), "host_version": host_version(), "torch_version": _torch_version()}


def _torch_version() -> str:
    """Without what it was built for: cards of two makers may work together."""
    return torch.__version__.partition("+")[0]


def _hello() -> said.Hello:
    """Measures every card: a second or two."""
    cards = [
        said.Card(
            torch.cuda.get_device_name(index),
            torch.cuda.get_device_properties(index).total_memory,
            matrix_rate(torch.device("cuda", index)),
        )
        for index in range(torch.cuda.device_count())
    ]
    return said.Hello(
        said.VERSION, **_versions(), cards=tuple(cards) or (said.Card("cpu", 0, matrix_rate(torch.device("cpu"))),)
    )
