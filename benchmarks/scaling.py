"""What several devices would have to hand each other: counted, and a model of the time made of it. No measurement."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from clear_core.bands.plan import all_to_all_bytes, halo_bytes
from clear_core.flux import CHANNELS, LAYERS, PIXELS_PER_TOKEN, TEXT_TOKENS
from clear_core.layout import Grid, TokenLayout
from clear_core.pattern import attention_flops
from clear_core.window import Window

SIZE = 2  # bytes of an element


@dataclass(frozen=True, slots=True)
class Row:
    """halo_mb, all_to_all_mb: that one device sends in one layer. step_seconds: the model's."""

    pixels: int
    radius: int
    devices: int
    halo_mb: float
    text_mb: float
    all_to_all_mb: float
    step_seconds: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def rows(tflops: float, gigabytes: float, pixels: int = 8192, radius: int = 16) -> list[Row]:
    """tflops: what one device does in a second. gigabytes: what it hands over in a second."""
    image, window = Grid(pixels // PIXELS_PER_TOKEN, pixels // PIXELS_PER_TOKEN), Window(radius)
    layout = TokenLayout(TEXT_TOKENS, image)
    # Of a layer: attention, and 24 multiply-adds a channel pair for each token (projections and MLP).
    work = attention_flops(layout, window) + 24 * layout.tokens * CHANNELS**2
    found = []
    for devices in (1, 2, 4, 8):
        borders = min(2, devices - 1)
        halo = halo_bytes(image, window, CHANNELS, SIZE, borders)
        # The text's query, key and value to the others; back a share of its answer in float32.
        text = (3 * SIZE + 4) * TEXT_TOKENS * CHANNELS if devices > 1 else 0
        seconds = LAYERS * (work / devices / (tflops * 1e12) + (halo + text) / (gigabytes * 1e9))
        spread = all_to_all_bytes(layout.tokens, CHANNELS, SIZE, devices)
        found.append(Row(pixels, radius, devices, halo / 1e6, text / 1e6, spread / 1e6, seconds))
    return found


def table(found: list[Row], tflops: float, gigabytes: float) -> str:
    lines = [
        f"Sent by one device in one layer, {found[0].pixels} px, radius {found[0].radius}, bfloat16: counted.",
        "Beside it what sequence parallelism (all-to-all) sends. The time of a step is a MODEL, not a measurement:",
        f"devices of {tflops:g} TFLOP/s, links of {gigabytes:g} GB/s, nothing overlapped, no waiting.",
        "",
        f"{'devices':>7} {'halo MB':>9} {'text MB':>9} {'all-to-all MB':>14} {'ratio':>7} {'step s (model)':>15}",
    ]
    for row in found:
        ratio = f"{row.all_to_all_mb / row.halo_mb:.1f}" if row.halo_mb else ""
        lines.append(
            f"{row.devices:>7} {row.halo_mb:>9.1f} {row.text_mb:>9.1f} {row.all_to_all_mb:>14.1f} {ratio:>7} "
            f"{row.step_seconds:>15.2f}"
        )
    return "\n".join(lines)
