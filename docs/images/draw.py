"""Draw icon.svg and banner.svg: a circular attention window of radius 8 on a grid of image tokens.

    python docs/images/draw.py

The registry shows the PNG files beside them; a headless browser makes those from the SVG files (see the end).
"""

from __future__ import annotations

from pathlib import Path

RADIUS = 8
BACKGROUND, TOKEN, SEEN, QUERY = "#10141c", "#2b3446", "#3fb68b", "#ff9d3c"
FONT = "font-family='Helvetica, Arial, sans-serif'"


def grid(columns: int, rows: int, cell: float, left: float, top: float, centre: tuple[int, int]) -> str:
    """Image tokens as squares: the query, the tokens in its window, and all others."""
    squares: dict[str, list[str]] = {TOKEN: [], SEEN: [], QUERY: []}
    side = cell * 0.82
    for y in range(rows):
        for x in range(columns):
            dy, dx = y - centre[0], x - centre[1]
            colour = QUERY if dy == dx == 0 else SEEN if dy * dy + dx * dx < RADIUS * RADIUS else TOKEN
            squares[colour].append(f"M{left + x * cell:g} {top + y * cell:g}h{side:g}v{side:g}h-{side:g}z")
    return "\n".join(f'<path fill="{colour}" d="{"".join(paths)}"/>' for colour, paths in squares.items())


def picture(width: int, height: int, content: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f'<rect width="{width}" height="{height}" fill="{BACKGROUND}"/>\n{content}\n</svg>\n'
    )


def text(x: int, y: int, size: int, colour: str, words: str, weight: str = "normal") -> str:
    return f"<text x='{x}' y='{y}' font-size='{size}' font-weight='{weight}' fill='{colour}' {FONT}>{words}</text>"


def main() -> None:
    folder = Path(__file__).parent
    icon = grid(19, 19, 20.0, 11.8, 11.8, (9, 9))
    (folder / "icon.svg").write_text(picture(400, 400, icon), encoding="utf-8")
    banner = [
        grid(66, 27, 20.0, -28.0, 2.0, (13, 13)),
        f'<rect x="470" y="130" width="760" height="280" rx="18" fill="{BACKGROUND}"/>',
        text(510, 236, 48, "#ffffff", "CLEAR Attention for FLUX", "bold"),
        text(510, 300, 25, "#c5cfe0", "A circular attention window around each image token."),
        text(510, 342, 25, "#c5cfe0", "Cost grows with the pixels, not with their square."),
    ]
    (folder / "banner.svg").write_text(picture(1260, 540, "\n".join(banner)), encoding="utf-8")


if __name__ == "__main__":
    main()

# PNG: chromium --headless --screenshot=docs/images/icon.png --window-size=400,400 docs/images/icon.svg
#      chromium --headless --screenshot=docs/images/banner.png --window-size=1260,540 docs/images/banner.svg
