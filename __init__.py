"""CLEAR Attention for FLUX: the list of nodes, the folder of the page's files, and what the page asks the server."""

from comfy_api.latest import ComfyExtension, io

from .nodes import host
from .nodes.apply import CLEARApply
from .nodes.attention_map import CLEARAttentionMap
from .nodes.compare import CLEARCompare
from .nodes.control_net import CLEARControlNet
from .nodes.high_res import CLEARHighRes, CLEARItem, CLEARStages
from .nodes.multi_gpu import CLEARMultiGPU
from .nodes.report_node import CLEARReport
from .nodes.tiled_sampler import CLEARTiledSampler
from .nodes.weights_loader import CLEARWeightsLoader

WEB_DIRECTORY = "./web"


class ClearAttentionExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            CLEARWeightsLoader,
            CLEARApply,
            CLEARMultiGPU,
            CLEARTiledSampler,
            CLEARHighRes,
            CLEARStages,
            CLEARItem,
            CLEARCompare,
            CLEARControlNet,
            CLEARReport,
            CLEARAttentionMap,
        ]


async def comfy_entrypoint() -> ClearAttentionExtension:
    host.add_routes()  # not in on_load, which hosts as old as 0.3.75 have but never call
    return ClearAttentionExtension()
