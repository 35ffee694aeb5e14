"""What the pack costs: `python dev.py bench` and `python dev.py run --headless --full-width`."""
