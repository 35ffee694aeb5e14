"""The list of nodes, as ComfyUI asks for it."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import host
from .apply import CLEARApply
from .attention_map import CLEARAttentionMap
from .cluster_rank import rank_node
from .compare import CLEARCompare
from .control_net import CLEARControlNet
from .distill import CLEARDistill
from .evaluate import CLEAREvaluate
from .factors import CLEARFactors
from .high_res import CLEARHighRes
from .high_res_parts import CLEARBatch, CLEARItem, CLEARStages
from .high_res_vae import CLEARStageDecode, CLEARStageEncode
from .load_large import CLEARLoadLarge
from .multi_gpu import CLEARMultiGPU
from .preset import CLEARPreset
from .report import CLEARReport
from .save_large import CLEARSaveLarge
from .sweep import CLEARSweep
from .tiled_sampler import CLEARTiledSampler
from .training_set import CLEARTrainingSet
from .vae_strips import CLEARVAEDecode, CLEARVAEEncode
from .weights_loader import CLEARWeightsLoader


class ClearAttentionExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        worker = host.start_worker()
        return [
            *([] if worker is None else [rank_node(worker)]),
            CLEARPreset,
            CLEARWeightsLoader,
            CLEARApply,
            CLEARMultiGPU,
            CLEARTiledSampler,
            CLEARHighRes,
            CLEARStages,
            CLEARItem,
            CLEARBatch,
            CLEARStageEncode,
            CLEARStageDecode,
            CLEARCompare,
            CLEARControlNet,
            CLEARReport,
            CLEARAttentionMap,
            CLEARVAEDecode,
            CLEARVAEEncode,
            CLEARSaveLarge,
            CLEARLoadLarge,
            CLEARTrainingSet,
            CLEARDistill,
            CLEARFactors,
            CLEARSweep,
            CLEAREvaluate,
        ]


async def comfy_entrypoint() -> ClearAttentionExtension:
    host.add_prompt_handler()
    host.add_routes()  # not in on_load, which hosts as old as 0.3.75 have but never call
    return ClearAttentionExtension()
