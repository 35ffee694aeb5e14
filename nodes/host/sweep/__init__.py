"""CLEAR Sweep: every cell of a grid sampled, timed and compared with the dense image; what is on disk stays."""
