"""Images that are too large for Pillow's limit or for a second copy in memory: saved and loaded in bands of rows."""

from typing import Final

BAND: Final = 2**20
"""Pixels of a band: the copies that are made of it take some 40 MB."""
