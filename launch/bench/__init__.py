"""The benchmarks of launch/bench.py and the grid of launch/ablate.py."""
