"""Starts a command of a package by its name, for the console scripts."""

import runpy
import sys
from collections.abc import Mapping, Sequence

from inf_jax.core.cli_flags import check_choice
from inf_jax.core.errors import main_guard


def dispatch(
    argv: Sequence[str], *, program: str, package: str, commands: Mapping[str, str]
) -> None:
    """Runs `package.COMMAND` as `python -m` would; argv[1] names the command, as in `sys.argv`.

    Args:
      commands: name, with hyphens where the module has underscores -> what it does.

    Raises:
      SystemExit: for --help; with code 2 for no command or an unknown one.
    """
    name = argv[1].replace("_", "-") if len(argv) > 1 else ""
    if name in commands:
        sys.argv = [f"{program} {name}", *argv[2:]]
        module = f"{package}.{name.replace('-', '_')}"
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    if name and name not in ("-h", "--help"):
        with main_guard():
            check_choice(f"{program}: command", argv[1], commands)
    width = max(map(len, commands))
    usage = [f"usage: {program} COMMAND [--help] ...", ""]
    usage += [f"  {command:<{width}}  {text}" for command, text in commands.items()]
    print("\n".join(usage), file=sys.stdout if name else sys.stderr)
    raise SystemExit(0 if name else 2)
