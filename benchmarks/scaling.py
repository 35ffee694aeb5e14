"""What several devices hand each other, counted, and the order of work replayed with modelled times."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from clear_core.bands.plan import BandPlan, all_to_all_bytes, halo_bytes
from clear_core.bands.simulate import Card, flux_costs, simulate
from clear_core.flux import CHANNELS, HEADS, LAYERS, PIXELS_PER_TOKEN, TEXT_TOKENS
from clear_core.layout import Grid
from clear_core.window import Window

SIZE = 2  # bytes of an element
ATTENTION = 0.5  # share of its rate that a card reaches in attention
BANDS = 4  # a device
REPLAYED = 4  # layers; all are alike


@dataclass(frozen=True, slots=True)
class Row:
    """halo_mb, text_mb, all_to_all_mb: that one device sends in one layer. step_seconds: replayed.

    speed_up: over one device. waiting_speed_up: the same if a device waited for each copy.
    """

    pixels: int
    radius: int
    devices: int
    halo_mb: float
    text_mb: float
    all_to_all_mb: float
    step_seconds: float
    speed_up: float
    waiting_speed_up: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def rows(tflops: float, gigabytes: float, pixels: int = 8192, radius: int = 16) -> list[Row]:
    """tflops: what one device does in a second. gigabytes: what it hands over in a second."""
    image, window = Grid(pixels // PIXELS_PER_TOKEN, pixels // PIXELS_PER_TOKEN), Window(radius)
    card = Card(tflops * 1e12, ATTENTION, gigabytes * 1e9)
    found, alone = [], 0.0
    for devices in (1, 2, 4, 8):
        plan = BandPlan.cut(image, BANDS * devices, window, shares=(1.0,) * devices)
        halo = halo_bytes(image, window, CHANNELS, SIZE, min(2, devices - 1))
        # Of the text: to the others their shares of out and log-sum-exp in float32, then this one's share, merged.
        text = (devices - 1) * TEXT_TOKENS // devices * (4 * (CHANNELS + HEADS) + SIZE * CHANNELS)
        timeline = simulate(plan, flux_costs(plan, card, TEXT_TOKENS), REPLAYED)
        seconds = timeline.seconds / REPLAYED * LAYERS
        waiting = (max(timeline.busy.values()) / REPLAYED + (halo + text) / card.link) * LAYERS
        alone = alone or seconds
        spread = all_to_all_bytes(image.tokens + TEXT_TOKENS, CHANNELS, SIZE, devices)
        sent = (halo / 1e6, text / 1e6, spread / 1e6)
        found.append(Row(pixels, radius, devices, *sent, seconds, alone / seconds, alone / waiting))
    return found


def table(found: list[Row], tflops: float, gigabytes: float) -> str:
    lines = [
        f"Sent by one device in one layer, {found[0].pixels} px, radius {found[0].radius}, bfloat16: counted.",
        "Beside it what sequence parallelism (all-to-all) sends. Times are a MODEL, not a measurement: the order of",
        f"work replayed with devices of {tflops:g} TFLOP/s ({ATTENTION:.0%} of it in attention), links of",
        f"{gigabytes:g} GB/s, {BANDS} bands a device.",
        "",
        f"{'devices':>7} {'halo MB':>9} {'text MB':>9} {'all-to-all MB':>14} {'ratio':>7} {'step s':>8} "
        f"{'speed-up':>9} {'if copies were waited for':>26}",
    ]
    for row in found:
        ratio = f"{row.all_to_all_mb / row.halo_mb:.1f}" if row.halo_mb else ""
        lines.append(
            f"{row.devices:>7} {row.halo_mb:>9.1f} {row.text_mb:>9.1f} {row.all_to_all_mb:>14.1f} {ratio:>7} "
            f"{row.step_seconds:>8.2f} {row.speed_up:>9.2f} {row.waiting_speed_up:>26.2f}"
        )
    return "\n".join(lines)
