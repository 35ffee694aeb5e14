"""The worker's side: joins a driver, has its own ComfyUI load the driver's MODEL, and computes its rows of forwards.

Two threads: this one talks to the driver, and the host's own, in which the node `CLEARClusterRank` serves forwards for
as long as the driver wants that MODEL. Graphs run as any prompt does, so that every loader and patch works as there.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import comfy.model_management

from ....clear_core.bands.plan import BandPlan
from ....clear_core.bands.remote import PeerError
from ....clear_core.cluster import messages as said
from ....clear_core.cluster.c10d import C10dTransport, joined_store
from ....clear_core.cluster.channel import Channel, Refused, Token, connect
from ....clear_core.cluster.measure import answer_link
from ....clear_core.cluster.schema import MalformedError
from ....clear_core.cluster.transport import ForwardLinks, Router
from ....clear_core.file_stamp import FileStamp
from ....clear_core.layout import Band, Grid
from ....clear_core.window import Window
from ...options.machines import JoinAddress
from ..bands.progress import ForwardProgress, Throttle
from .graph import model_files, node_classes, refusal
from .rank import RankBands, serving

_log = logging.getLogger("clear-attention")
RANK_NODE = "CLEARClusterRank"
_AGAIN = 2.0  # seconds between two tries to join
_AGAIN_REFUSED = 30.0  # where the driver does not want it: each try is a line in its log
_TICK = 0.5


class Worker:
    """Joins, and joins again whenever the driver has gone. server: ComfyUI's, of this process."""

    def __init__(self, address: JoinAddress, token: Token, hello: Callable[[], said.Hello], server: Any) -> None:
        self._address, self._token, self._hello, self._server = address, token, hello, server
        self._commands: queue.SimpleQueue[said.Group | said.Measure | said.Forward | None] = queue.SimpleQueue()
        self._channel: Channel | None = None
        self._serving = threading.Event()
        self._job = 0  # the latest that the driver has asked for
        self._job_taken = False  # by the host, since it was last told to forget
        self._throttle = Throttle()

    def start(self) -> None:
        threading.Thread(target=self._run, name="clear-worker", daemon=True).start()

    def _run(self) -> None:
        told = ""
        while True:
            wait = _AGAIN
            try:
                with connect(self._address.host, self._address.port, self._token, timeout=10) as channel:
                    self._channel = channel
                    self._talk(channel)
            except (OSError, Refused, MalformedError) as error:
                if isinstance(error, Refused):
                    wait = _AGAIN_REFUSED
                if told != (told := f"{self._address}: {error}"):
                    _log.info("CLEAR worker: %s; trying again", told)
            finally:
                self._channel = None
                self._release()
                self._free()
            time.sleep(wait)

    def _talk(self, channel: Channel) -> None:
        """One stay with a driver."""
        channel.send(said.encode(self._hello()))
        first = said.decode(channel.receive(timeout=10), said.Welcome, said.Refusal)
        if isinstance(first, said.Refusal):
            raise Refused(f"the driver refuses this worker: {first.reason}")
        _log.info("CLEAR worker: joined %s", self._address)
        while True:
            message = said.decode(channel.receive(timeout=None), *said.FromDriver.__args__)
            if isinstance(message, said.Bye):
                return
            if isinstance(message, said.Alive):
                channel.send(said.encode(message))
            elif isinstance(message, said.LoadModel):
                self._load(message)
            elif isinstance(message, (said.Group, said.Measure, said.Forward)):
                self._commands.put(message)

    def _load(self, asked: said.LoadModel) -> None:
        """Have the host run the graph; the node in it says that the MODEL is there."""
        self._release()
        reason = refusal(asked.graph, node_classes())
        if reason:
            self.failed(reason)
            return
        own = model_files(asked.graph)
        missing = tuple(name for name, known in asked.files.items() if name not in own or _sha256(own[name]) != known)
        if missing:
            self._say(said.Loaded("0" * 64, missing, ()))
            return
        rank = {"class_type": RANK_NODE, "inputs": {"model": [asked.node, asked.output], "job": self._job}}
        prompt = {**asked.graph, RANK_NODE: rank}
        try:
            number = _request(f"{self._own}/prompt", {"prompt": prompt, "client_id": RANK_NODE})["prompt_id"]
        except OSError as error:
            text = error.read().decode("utf-8", "replace") if isinstance(error, urllib.error.HTTPError) else str(error)
            self.failed(f"its ComfyUI does not take the graph: {text[:2000]}")
            return
        self._job_taken = True
        threading.Thread(target=self._watch, args=(number, self._job), name="clear-loading", daemon=True).start()

    def _watch(self, prompt: str, job: int) -> None:
        """Tell the driver where the graph fails in the host."""
        while job == self._job and not self._serving.is_set():
            found = _request(f"{self._own}/history/{prompt}").get(prompt)
            if found is not None:
                status = found.get("status") or {}
                if status.get("status_str") == "error":
                    told = [about for kind, about in status["messages"] if kind == "execution_error"]
                    reason = f"{told[0]['node_type']}: {told[0]['exception_message']}" if told else "it was interrupted"
                    self.failed(f"its ComfyUI could not load the model ({reason.strip()})")
                return
            time.sleep(_TICK)

    @property
    def _own(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def _release(self) -> None:
        """The driver does not want the MODEL any more."""
        self._job += 1
        if self._serving.is_set():
            self._commands.put(None)
            while self._serving.is_set():
                time.sleep(_TICK / 10)

    def _free(self) -> None:
        """The driver has gone: have the host forget what graphs have made, which it would keep in main memory."""
        if self._job_taken:
            self._job_taken = False
            with suppress(OSError):
                _post(f"{self._own}/free", {"unload_models": True, "free_memory": True}).close()

    def serve(self, model: Any, job: int) -> None:
        """In the host's thread, by the node: compute forwards until the MODEL is released. model: of the graph of a
        job."""
        if job != self._job:
            return  # another is wanted by now
        bands = RankBands()
        patched, digest = serving(model, bands)
        self._commands = queue.SimpleQueue()
        self._serving.set()
        router: Router | None = None
        try:
            self._say(said.Loaded(digest, (), bands.rooms(patched)))
            while (command := self._command()) is not None:
                if router is not None and isinstance(command, said.Group):
                    router.close()
                    router = None
                router = self._obey(command, patched, bands, router)
        finally:
            if router is not None:
                router.close()
            self._serving.clear()
            if job == self._job:
                self.failed("its ComfyUI has stopped serving: its queue was interrupted or cleared")
            comfy.model_management.unload_all_models()
            comfy.model_management.soft_empty_cache()

    def failed(self, reason: str, run: int | None = None) -> None:
        _log.warning("CLEAR worker: %s", reason)
        self._say(said.Failed(run, reason[:4000]))

    def _command(self) -> said.Group | said.Measure | said.Forward | None:
        while True:
            try:
                return self._commands.get(timeout=_TICK)
            except queue.Empty:
                comfy.model_management.throw_exception_if_processing_interrupted()

    def _obey(
        self, command: said.Group | said.Measure | said.Forward, patched: Any, bands: RankBands, router: Router | None
    ) -> Router | None:
        """The group after a command."""
        if isinstance(command, said.Group):
            try:
                return Router(self._join(command))
            except RuntimeError as error:
                _log.warning("CLEAR worker: it does not reach all of the group: %s", str(error).splitlines()[0])
                return None  # the driver tries again, without those that do not answer
        if router is None:
            return None
        if isinstance(command, said.Measure):
            links = router.forward(command.forward, (0, router.transport.rank))
            try:
                answer_link(links, 0)
            except PeerError as error:
                _log.info("CLEAR worker: %s", error)
            finally:
                links.end()
            return router
        links = router.forward(command.forward, command.ranks)
        try:
            given = {name: links.receive(0, "given", index)[0] for index, name in enumerate(command.given)}
            plan = plan_of(command)
            progress = self._progress(command, plan, links)
            out = bands.rows(
                patched, given, plan, links, command.text_merge, progress.block_done, active=command.active
            )
            links.send(0, "output", 0, (out,))
            self._say(said.Done(command.run, command.forward))
        except PeerError as error:
            _log.info("CLEAR worker: %s", error)  # the driver knows, and repeats the forward
        except Exception as error:
            links.failed(error)
            self.failed(f"{type(error).__name__}: {error}", command.run)
        finally:
            links.end()
        return router

    def _progress(self, command: said.Forward, plan: BandPlan, links: ForwardLinks) -> ForwardProgress:
        """Tells the driver what this rank's bands have done."""
        own = [band for lane in links.lanes for band in plan.bands_of(lane)]

        def report(done: Sequence[int]) -> None:
            self._say(said.Progress(command.run, command.forward, own[0], tuple(done[own[0] : own[-1] + 1])))

        return ForwardProgress(len(plan.bands), report, self._throttle)

    def _join(self, group: said.Group) -> C10dTransport:
        store = joined_store(group.store.host, group.store.port)
        interface = self._channel.local_address if self._channel is not None else ""
        return C10dTransport(store, group.prefix, group.rank, group.ranks, interface=interface)

    def _say(self, message: said.Message) -> None:
        if self._channel is not None:
            try:
                self._channel.send(said.encode(message))
            except OSError as error:
                _log.info("CLEAR worker: %s", error)


def plan_of(command: said.Forward) -> BandPlan:
    bands = tuple(Band(rows.start, rows.stop) for rows in command.bands)
    window = None if command.radius is None else Window(command.radius)
    return BandPlan(Grid(command.height, command.width), bands, command.lanes, window, command.together)


def _sha256(path: Path) -> str | None:
    return FileStamp.of(path).sha256()


def _request(address: str, body: Mapping[str, Any] | None = None) -> Any:
    with _post(address, body) as answer:
        return json.load(answer)


def _post(address: str, body: Mapping[str, Any] | None) -> HTTPResponse:
    """body: None asks without one."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=30)
