"""CLEAR Attention for FLUX, a ComfyUI node pack: the nodes and the folder of the page's files."""

import logging

from .nodes import compat

try:
    compat.check()
    from .nodes.extension import comfy_entrypoint as comfy_entrypoint

    WEB_DIRECTORY = "./web"
except Exception as problem:  # whatever a host may raise: ComfyUI starts without these nodes
    logging.getLogger("clear-attention").error(compat.explained(problem))
    logging.getLogger("clear-attention").debug("This is where:", exc_info=True)
    NODE_CLASS_MAPPINGS = {}
