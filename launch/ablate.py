"""Starts a grid of training runs, one per objective and mask: `python launch/ablate.py --help`."""

from bench.ablation import main

if __name__ == "__main__":
    main()
