"""Numbers as text."""

from __future__ import annotations

import math


def shown(value: float) -> str:
    """A number with three digits: 0.0421, 3.14, 27.2, 415, 12,300."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits)}f}"


def percent(share: float) -> str:
    """A share of 0 to 1 in percent: 83 %, 4.8 %, 0.03 %."""
    value = share * 100
    if 0 < value < 0.01:
        return "below 0.01 %"
    if 99.5 <= value < 99.95:
        return f"{value:.1f} %"  # 100 % would mean all of it
    return f"{value:.2g} %" if value < 10 else f"{value:.0f} %"


def duration(seconds: float) -> str:
    """45 s, 2 min 10 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
