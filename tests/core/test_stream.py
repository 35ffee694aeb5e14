"""Bands in step, against one device: a small transformer of the tests' own, then what may go wrong."""

from __future__ import annotations
