"""The driver's side: workers that have joined, the group that they form with this process, and forwards with them.

A forward is stateless: where a worker is lost in the middle of one, the rest form a new group and it is repeated. A
worker that joins, or comes back, takes part from the next forward on.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....clear_core.bands.plan import BandPlan
from ....clear_core.bands.remote import PeerError
from ....clear_core.bands.workers import TextMerge
from ....clear_core.cluster import messages as said
from ....clear_core.cluster.c10d import PATIENCE, C10dTransport, new_store
from ....clear_core.cluster.channel import Channel, Disconnected, Listener, Refused, Token
from ....clear_core.cluster.measure import matrix_rate, time_link
from ....clear_core.cluster.schema import MalformedError
from ....clear_core.cluster.transport import ForwardLinks, Router
from ....clear_core.file_stamp import FileStamp
from ...options.machines import JoinAddress
from ..bands.progress import BlockDone, ForwardProgress
from .member import TRIES, Member, ModelJob

_log = logging.getLogger("clear-attention")
Compute = Callable[[BandPlan, ForwardLinks, BlockDone | None], Tensor]
"""This process's own rows."""
_LOAD_SECONDS = 1800.0
_TICK = 0.2


@dataclass(frozen=True, slots=True)
class Share:
    """How a forward is dealt. ranks: whose each lane of the plan is. progress: None where nobody watches."""

    plan: BandPlan
    ranks: tuple[int, ...]
    progress: ForwardProgress | None


@dataclass(eq=False)
class _Group:
    run: int
    members: tuple[Member, ...]
    router: Router


class Driver:
    """Listens at one address. Its workers outlive a prompt; `close` ends all."""

    def __init__(
        self,
        address: JoinAddress,
        token: Token,
        versions: Callable[[], Mapping[str, str]],
        changed: Callable[[], None],
    ) -> None:
        """versions: pack_version, host_version and torch_version, which a worker's must equal. changed: called, by any
        thread, when what there is to show of a member has changed."""
        self.address = address
        self._versions, self._tell_page = versions, changed
        self._changed = threading.Condition()
        self._members: dict[int, Member] = {}
        self._numbers, self._runs, self._forwards, self._questions = (itertools.count() for _ in range(4))
        self._group: _Group | None = None
        self._running: tuple[int, ForwardProgress | None] = -1, None  # the forward's number
        self._store: Any = None
        self._hashes: dict[FileStamp, str] = {}
        self._rates: dict[torch.device, float] = {}
        self._closed = False
        self._listener = Listener(address.host, address.port, token, refused=self._refused)
        threading.Thread(target=self._accept, name="clear-join", daemon=True).start()

    @property
    def members(self) -> list[Member]:
        with self._changed:
            return list(self._members.values())

    def close(self) -> None:
        self._closed = True
        self._drop_group()
        self._listener.close()
        for member in self.members:
            self._tell(member, said.Bye())
            member.channel.close()

    def rate(self, device: torch.device) -> float:
        """Operations a second of a device of this machine, measured once."""
        if device not in self._rates:
            self._rates[device] = matrix_rate(device)
        return self._rates[device]

    def prepare(self, job: ModelJob, check: Callable[[], None], waits: float = _LOAD_SECONDS) -> None:
        """Have every worker load a job's MODEL, and wait until each has it or says why not. check: may raise to end."""
        ends = time.monotonic() + waits
        for member in self.members:
            if member.loaded != job:
                member.loading, member.problem = None, ""  # what was missing may be there by now
        while time.monotonic() < ends:
            waiting = False
            for member in self.members:
                if member.loaded == job or (member.problem and member.loading == job):
                    continue
                if member.loading != job:
                    member.loading, member.loaded, member.problem = job, None, ""
                    files = {name: self._hash(path) for name, path in job.files.items()}
                    self._tell(member, said.LoadModel(job.graph, job.node, job.output, files))
                waiting = True
            if not waiting:
                self._tell_page()
                return
            check()
            with self._changed:
                self._changed.wait(_TICK)

    def forward(
        self,
        job: ModelJob,
        tensors: Mapping[str, Tensor],
        deal: Callable[[Sequence[Member]], Share],
        text_merge: TextMerge,
        compute: Compute,
        *,
        active: bool,
    ) -> list[Tensor] | None:
        """The rows of the output of every rank, top to bottom; None where no worker takes part.

        deal: bands and lanes for this process and so many workers.
        """
        failures = 0
        while True:
            members = self._ready(job, after_failure=failures > 0)
            if not members:
                return None
            try:
                group = self._grouped(members)
                self._measure(group)
                before = [member.dealt for member in group.members]
                share = deal(group.members)
                if before != [member.dealt for member in group.members]:
                    self._tell_page()
                if len(set(share.ranks)) == 1:
                    return None
                return self._run(group, share, tensors, text_merge, compute, active=active)
            except PeerError as error:
                failures += 1
                _log.warning("CLEAR Multi-GPU: %s; the forward is repeated", error)
                self._drop_group()

    def _run(
        self,
        group: _Group,
        share: Share,
        tensors: Mapping[str, Tensor],
        text_merge: TextMerge,
        compute: Compute,
        *,
        active: bool,
    ) -> list[Tensor]:
        plan, number = share.plan, next(self._forwards)
        self._running = number, share.progress
        links = group.router.forward(number, share.ranks)
        rows = tuple(said.Rows(band.start, band.stop) for band in plan.bands)
        message = said.Forward(
            group.run, number, plan.image.height, plan.image.width, rows, plan.lanes,
            None if plan.window is None else plan.window.radius, plan.together, text_merge,
            share.ranks, active, tuple(tensors),
        )  # fmt: skip
        for rank in links.others:
            if not self._tell(group.members[rank - 1], message):
                raise PeerError(f"rank {rank} has left")
            for index, tensor in enumerate(tensors.values()):
                links.send(rank, "given", index, (tensor,))
        try:
            own = compute(plan, links, share.progress and share.progress.block_done)
            parts = [own, *(links.receive(rank, "output", 0)[0] for rank in links.others)]
            if share.progress is not None:
                share.progress.finished()
            return parts
        except PeerError:
            raise
        except BaseException as problem:
            links.failed(problem)  # also where it has not come to the bands, such as when the prompt was cancelled
            raise
        finally:
            links.end()

    def _measure(self, group: _Group) -> None:
        """Time the links of those that have just joined. Raises PeerError."""
        for rank, member in enumerate(group.members, 1):
            if member.link is not None:
                continue
            links = group.router.forward(next(self._forwards), (0, rank))
            if not self._tell(member, said.Measure(group.run, links.number)):
                raise PeerError(f"rank {rank} has left")
            try:
                member.link = time_link(links, rank)
            finally:
                links.end()
            _log.info("CLEAR Multi-GPU: %s to %s", member.link, member.name)
            self._tell_page()

    def _ready(self, job: ModelJob, *, after_failure: bool) -> list[Member]:
        """Workers that have the MODEL; after a failure those of them that answer now."""
        members = [member for member in self.members if member.loaded == job and not member.gone]
        if after_failure:
            question = next(self._questions)
            for member in members:
                self._tell(member, said.Alive(question))
            ends = time.monotonic() + PATIENCE / 2
            with self._changed:
                while any(m.answered < question and not m.gone for m in members) and time.monotonic() < ends:
                    self._changed.wait(_TICK)
            members = [member for member in members if member.answered >= question and not member.gone]
        return members

    def _grouped(self, members: Sequence[Member]) -> _Group:
        """The group of these workers, made where it is another. Raises PeerError where one does not join it."""
        if self._group is not None and self._group.members == tuple(members) and not self._group.router.lost:
            return self._group
        self._drop_group()
        if self._store is None:
            self._store = new_store(self.address.host)
        run, prefix = next(self._runs), uuid.uuid4().hex
        store = said.Address(self.address.host, self._store.port)
        for rank, member in enumerate(members, 1):
            self._tell(member, said.Group(run, prefix, len(members) + 1, rank, store))
        try:
            transport = C10dTransport(self._store, prefix, 0, len(members) + 1, interface=self.address.host)
        except RuntimeError as error:
            for member in members:
                member.untried -= 1
                if member.untried <= 0:
                    member.loaded, member.problem = None, "it does not join the group: see its log"
            raise PeerError(f"the machines do not reach each other ({str(error).splitlines()[0][:200]})") from error
        for member in members:
            member.untried = TRIES
        self._group = _Group(run, tuple(members), Router(transport))
        return self._group

    def _drop_group(self) -> None:
        if self._group is not None:
            self._group.router.close()
            self._group = None

    def _accept(self) -> None:
        while not self._closed:
            try:
                channel = self._listener.accept(timeout=1.0)
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=self._welcome, args=(channel,), name="clear-member", daemon=True).start()

    def _welcome(self, channel: Channel) -> None:
        """One worker, as long as it stays."""
        try:
            hello = said.decode(channel.receive(timeout=10), said.Hello)
            wanted = self._versions()
            other = [
                f"{name.removesuffix('_version')} {getattr(hello, name)}, here {version}"
                for name, version in wanted.items()
                if getattr(hello, name) != version
            ]
            if other:
                channel.send(said.encode(said.Refusal(f"it has {'; '.join(other)}: install the same versions")))
                self._refused(f"{channel.peer}: {'; '.join(other)}")
                channel.close()
                return
            member = Member(next(self._numbers), channel, hello)
            channel.send(said.encode(said.Welcome(member.number)))
        except (OSError, Refused, MalformedError) as error:
            self._refused(f"{channel.peer}: {error}")
            channel.close()
            return
        _log.info("CLEAR Multi-GPU: %s has joined", member.name)
        with self._changed:
            self._members[member.number] = member
            self._changed.notify_all()
        self._tell_page()
        reason = ""
        try:
            while True:
                message = said.decode(channel.receive(timeout=None), *said.FromWorker.__args__)
                if isinstance(message, said.Bye):
                    break
                self._heard(member, message)
        except (Disconnected, Refused, MalformedError) as error:
            reason = f": {error}"
        channel.close()
        with self._changed:
            member.gone = True
            self._members.pop(member.number, None)
            self._changed.notify_all()
        self._tell_page()
        _log.info("CLEAR Multi-GPU: %s has left%s", member.name, reason)

    def _heard(self, member: Member, message: said.Message) -> None:
        if isinstance(message, said.Progress):
            number, progress = self._running
            if progress is not None and message.forward == number:
                progress.others_done(message.first, message.blocks)
            return
        with self._changed:
            if isinstance(message, said.Alive):
                member.answered = message.asked
            elif isinstance(message, said.Loaded) and member.loading is not None:
                if message.missing:
                    member.problem = f"it lacks {', '.join(message.missing)}, or has other files of these names"
                elif message.patch_keys_digest != member.loading.digest:
                    member.problem = "its model is not the same: another type, or other patches; compare the packs"
                else:
                    cards = len(member.hello.cards)
                    known = message.memory if len(message.memory) == cards else (0,) * cards
                    member.memory = tuple(each or None for each in known)
                    member.loaded, member.problem = member.loading, ""
            elif isinstance(message, said.Failed):
                # Of a run, such as one that its memory is too small for: repeated with it, a forward would never end.
                member.loaded, member.problem = None, message.reason
            self._changed.notify_all()
        if isinstance(message, (said.Loaded, said.Failed)):
            self._tell_page()

    def _tell(self, member: Member, message: said.Message) -> bool:
        """Whether it could be sent."""
        try:
            member.channel.send(said.encode(message))
        except Disconnected:
            return False
        return True

    def _hash(self, path: Path) -> str:
        stamp = FileStamp.of(path)
        if stamp not in self._hashes:
            self._hashes[stamp] = stamp.sha256() or "0" * 64
        return self._hashes[stamp]

    def _refused(self, line: str) -> None:
        _log.warning("CLEAR Multi-GPU: refused %s", line)
