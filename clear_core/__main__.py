"""`python -m clear_core --size 2048x2048 --radius 16`: see `show.command`."""

from .show.command import main

main()
