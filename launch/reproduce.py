"""Runs the paper's grid or its reviewers' questions: `python launch/reproduce.py --help`."""

from bench.paper.command_line import main

if __name__ == "__main__":
    main()
