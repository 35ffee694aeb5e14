"""CLEAR Attention for FLUX: the folder of the page's files, and the nodes, where this ComfyUI has what they need."""

import logging

from .nodes import compat

try:
    compat.check()
    from .nodes.extension import comfy_entrypoint as comfy_entrypoint

    WEB_DIRECTORY = "./web"
except Exception as problem:  # whatever a host may raise: it goes on starting without these nodes
    logging.getLogger("clear-attention").error(compat.explained(problem))
    logging.getLogger("clear-attention").debug("This is where:", exc_info=True)
    NODE_CLASS_MAPPINGS = {}
