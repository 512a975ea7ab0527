"""Wraps a command's `main` for one process or for several that run it together."""

import contextlib
import functools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from inf_jax.core.errors import UserError, in_one_line
from inf_jax.distributed.cluster import find_place, initialise

_GRACE_S = 5.0  # for an error that all processes raise at about the same time


def run_distributed(main: Callable[..., None]) -> Callable[..., None]:
    """A command's main that all processes of a run execute: joined before it, all ended after it.

    An error ends its process at once, without JAX's wait for the others: they may be inside a
    collective that only a death ends (on CPUs at once; on TPUs and GPUs after 100 s without
    heartbeats).
    """

    @functools.wraps(main)
    def distributed_main(*args, **kwargs) -> None:
        with _end_all_on_error() if initialise() else contextlib.nullcontext():
            main(*args, **kwargs)

    return distributed_main


def single_process_only(main: Callable[[ConfigDict], None]) -> Callable[[ConfigDict], None]:
    """A main that refuses to be started as several processes."""

    def checked(resolved: ConfigDict) -> None:
        place = find_place()
        if place is not None:
            raise UserError(
                f"this command is for a single process, {place.count} were started: start it once, "
                "with JAX_NUM_PROCESSES=1 in its environment (and JAX_PLATFORMS=cpu on one host of "
                "a TPU slice of several)"
            )
        main(resolved)

    return checked


@contextlib.contextmanager
def _end_all_on_error() -> Iterator[None]:
    from inf_jax.distributed.coordination import barrier, is_primary

    try:
        yield
    except BaseException as error:
        status, line = 1, in_one_line(error)
        if line:
            print(line[0], file=sys.stderr)
            status = line[1]
        elif isinstance(error, SystemExit) and isinstance(error.code, int):
            status = error.code
        else:
            traceback.print_exc()
        with contextlib.suppress(Exception):
            barrier("failed", timeout_s=_GRACE_S)
        if is_primary():  # its end aborts the others
            time.sleep(0.5)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
