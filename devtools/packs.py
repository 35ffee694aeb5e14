"""Nodes that change how a FLUX model runs, to be tried beside CLEAR: ComfyUI's own, and those of packs by folder."""

from __future__ import annotations

from .pack_trial import HEIGHT, WIDTH, Trial

# Not every supported ComfyUI has all of them.
OWN: tuple[Trial, ...] = (
    Trial("EasyCache", {"reuse_threshold": 0.3}),
    Trial("LazyCache", {"reuse_threshold": 0.3}),
    Trial("APG"),
    Trial("CFGZeroStar"),
    Trial("TCFG"),
    Trial("Mahiro"),
    Trial("FreSca"),
    Trial("RescaleCFG"),
    Trial("DifferentialDiffusion"),
)

TRIALS: dict[str, tuple[Trial, ...]] = {
    "Comfy-WaveSpeed": (Trial("ApplyFBCacheOnModel", {"residual_diff_threshold": 0.1}),),
    "ComfyUI-DyPE": (Trial("DyPE_FLUX", {"width": 8 * WIDTH, "height": 8 * HEIGHT, "base_resolution": 256}),),
    "ComfyUI-Fluxtapoz": (Trial("ConfigureModifiedFlux"), Trial("PAGAttention")),
    "ComfyUI-MagCache": (Trial("MagCache", {"model_type": "flux"}),),
    "ComfyUI-NAG": (Trial("NAGGuider"),),
    "ComfyUI-TeaCache": (Trial("TeaCache", {"model_type": "flux", "cache_device": "cpu"}),),
    "ComfyUI-TiledDiffusion": (Trial("TiledDiffusion", {"tile_width": 192, "tile_height": 192, "tile_overlap": 32}),),
    "RES4LYF": (Trial("ReFluxPatcher", {"style_dtype": "float32"}),),
}
