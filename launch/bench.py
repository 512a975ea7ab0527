"""Starts the benchmarks: `python launch/bench.py --help`.

A package is imported before a module of the same name (PEP 420), so `bench` below is the folder
beside this file and not this file.
"""

from bench.command_line import main

if __name__ == "__main__":
    main()
