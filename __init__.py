"""CLEAR Attention for FLUX: the list of nodes, and the folder of the page's files."""

from comfy_api.latest import ComfyExtension, io

from .nodes.apply import CLEARApply
from .nodes.compare import CLEARCompare
from .nodes.control_net import CLEARControlNet
from .nodes.high_res import CLEARHighRes, CLEARStages
from .nodes.multi_gpu import CLEARMultiGPU
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
            CLEARCompare,
            CLEARControlNet,
        ]


async def comfy_entrypoint() -> ClearAttentionExtension:
    return ClearAttentionExtension()
