"""What ComfyUI's own text nodes make of the prompts, kept on disk: training reads each of them many times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clear_core.whole_file import written_whole

_BATCH = 32
WIDTH = 768
"""Of CLIP-L's features."""
HOST_WIDTH = 4096
"""Of T5's, to which the host pads them with zeros."""


def load_clip(file: Path) -> Any:
    """CLIP-L as DualCLIPLoader opens it under "sd3": twice the same file, no T5. With the host on the path."""
    import comfy.sd

    return comfy.sd.load_clip([str(file), str(file)], clip_type=comfy.sd.CLIPType.SD3)


@dataclass(frozen=True, slots=True)
class Texts:
    """Features of prompts, in the order in which they were given."""

    context: Tensor
    """[prompts, 77, WIDTH], float16."""
    pooled: Tensor
    """[prompts, WIDTH], float16."""

    def __len__(self) -> int:
        return len(self.context)

    def and_then(self, others: Texts) -> Texts:
        """These, and others after them."""
        return Texts(torch.cat([self.context, others.context]), torch.cat([self.pooled, others.pooled]))

    def features(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """As the host's nodes give them: [chosen, 77, HOST_WIDTH] and [chosen, WIDTH], float32."""
        context = torch.nn.functional.pad(self.context[chosen].float(), (0, HOST_WIDTH - WIDTH))
        return context, self.pooled[chosen].float()


def encode(clip: Any, prompts: Sequence[str], say: Callable[[str], None] = print) -> Texts:
    """The features of each prompt, as CLIPTextEncode gives them; many at a time, which it cannot."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([clip.patcher])
    contexts, pooled = [], []
    for at in range(0, len(prompts), _BATCH):
        tokens = [[token for token, _ in clip.tokenize(prompt)["l"][0]] for prompt in prompts[at : at + _BATCH]]
        with torch.inference_mode():
            context, summary = clip.cond_stage_model.clip_l(tokens)
        contexts.append(context.half())
        pooled.append(summary.half())
        if at % (8 * _BATCH) == 0:
            say(f"text: {at} of {len(prompts)} prompts")
    return Texts(torch.cat(contexts), torch.cat(pooled))


def cached(file: Path, clip: Callable[[], Any], prompts: Sequence[str], say: Callable[[str], None] = print) -> Texts:
    """The features of these prompts from `file`, made first where it is not there."""
    if not file.is_file():
        texts = encode(clip(), prompts, say)
        with written_whole(file) as part:
            save_file({"context": texts.context, "pooled": texts.pooled}, part)
    tensors = load_file(file)
    return Texts(tensors["context"], tensors["pooled"])
