"""Positions of a forward in bands: asked of the host once for the complete image, then cut for each worker.

The host is asked up to the point where its `post_input` patches have run, so that a patch which shifts or scales
positions by the image's size does what it would do without bands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import torch
from comfy.ldm.flux.layers import EmbedND
from torch import Tensor

from ..forward_args import ForwardArgs
from ..overrides import forward_owner

Patch = Callable[[dict[str, Any]], dict[str, Any]]


class _PositionsKnown(BaseException):
    """Ends the forward that is only asked for its positions."""


class Positions:
    """Ids of the complete sequence, [batch, tokens, axes], after every patch; the image's include the references'."""

    def __init__(self, text: Tensor, image: Tensor) -> None:
        self.text, self.image = text, image
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {text.device: (text, image)}
        # A worker's part. Each worker is a fiber with context variables of its own.
        self._part: ContextVar[tuple[list[slice], Tensor]] = ContextVar("part of the positions")

    @classmethod
    def of(cls, flux: Any, forward: Callable[..., Any], given: ForwardArgs) -> Positions:
        """Run a transformer's forward as far as its positions. given: the arguments of the complete image, padded."""
        found: list[Positions] = []

        def stop(args: dict[str, Any]) -> dict[str, Any]:
            found.append(cls(args["txt_ids"], args["img_ids"]))
            raise _PositionsKnown

        with suppress(_PositionsKnown):
            given.replaced(control=None, transformer_options=after_post_input(given.options, stop)).call(forward)
        if not found:
            owner = forward_owner(flux) or "another node"
            raise ValueError(
                "CLEAR cannot cut the image into bands: this model's forward does not ask for its positions through "
                f"ComfyUI's `post_input` patches. It comes from {owner}. Remove the node that brings it, or use "
                "one band."
            )
        return found[0]

    def take(self, spans: list[slice], device: torch.device) -> None:
        """Call in a worker's fiber, inside `embedded`: the image tokens that it has."""
        _, image = self._on[device]
        self._part.set((spans, torch.cat([image[:, span] for span in spans], dim=1)))

    def place(self, args: dict[str, Any]) -> dict[str, Any]:
        """A `post_input` patch that gives a worker its own positions."""
        _, ids = self._part.get()
        if args["img"].shape[1] != ids.shape[1]:
            raise ValueError(
                f"CLEAR cannot cut the image into bands: another node changes the number of image tokens "
                f"({args['img'].shape[1]} instead of {ids.shape[1]}). Remove it, or use one band."
            )
        text, _ = self._on[ids.device]
        return {**args, "img_ids": ids, "txt_ids": text[:, : args["txt"].shape[1]]}

    @contextmanager
    def embedded(self, lanes: Sequence[tuple[Any, torch.device]]) -> Iterator[None]:
        """For the time of a forward: positions on every device, and those that another node's embedder makes of them.

        Such an embedder is asked once for the complete image: it may derive its scale from the span of the positions
        that it is given (DyPE does). lanes: each lane's transformer and device, the one on the input's device first.
        """
        for _, device in lanes:
            if device not in self._on:
                self._on[device] = self.text.to(device), self.image.to(device)
        models = [flux for flux, _ in lanes]
        own = models[0].pe_embedder
        cut: Any = own  # which may be stretched for this forward's size, and the replicas' are not
        if type(own) is not EmbedND:
            cut = _CutEmbedder(own(torch.cat((self.text, self.image), dim=1)), self.text.shape[1], self._part)
        before = {id(model): (model, model.pe_embedder) for model in models}.values()
        try:
            for model, _ in before:
                model.pe_embedder = cut
            yield
        finally:
            for model, embedder in before:
                model.pe_embedder = embedder


class _CutEmbedder(torch.nn.Module):
    """Stands in for a model's embedder: the complete image's embedding, cut for each worker."""

    def __init__(self, complete: Tensor, text: int, part: ContextVar[tuple[list[slice], Tensor]]) -> None:
        super().__init__()
        self._complete, self._text, self._part = complete, text, part

    def forward(self, ids: Tensor) -> Tensor:
        spans, _ = self._part.get()
        image = [self._complete[:, :, self._text + span.start : self._text + span.stop] for span in spans]
        text = ids.shape[1] - sum(part.shape[2] for part in image)
        return torch.cat((self._complete[:, :, :text], *image), dim=2).to(ids.device)


def after_post_input(options: Mapping[str, Any], patch: Patch) -> dict[str, Any]:
    """transformer_options in which a patch runs after all other `post_input` patches."""
    patches = {**(options.get("patches") or {})}
    patches["post_input"] = [*patches.get("post_input", ()), patch]
    return {**options, "patches": patches}
