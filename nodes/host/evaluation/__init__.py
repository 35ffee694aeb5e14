"""Evaluation of image folders with this ComfyUI: files of networks, the networks, a run.

Start at `run.evaluate_folders`; what is measured is in `clear_core/evaluation`.
"""
