"""Eight virtual CPU devices, set before jax is imported; silent broadcasting is an error.

What is compiled once is not compiled again, in whichever process of the tests.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile

from tests.xla_flags import quick_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_flags(devices=8)}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest-xdist's workers have their parent's
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="inf_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax

# A shell's background job ignores Ctrl-C, and so would the commands that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(50_000, 20, 100)  # a tenth of the time: to import and to trace make no garbage

LONG = (  # in this order
    "tests/test_readme.py",
    "tests/inf_jax/commands/test_train",
    "tests/inf_jax/losses/test_blockwise.py",
    "tests/inf_jax/training/test_step",
    "tests/launch/",
)


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left alone with one at the end."""

    def place(item):
        return [n for n, start in enumerate(LONG) if item.nodeid.startswith(start)] or [len(LONG)]

    items.sort(key=place)


class _Failures:
    """Shows a failure when it happens: a run that is ended from outside shows no summary."""

    def __init__(self, config):
        self._plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report):
        terminal = self._plugins.get_plugin("terminalreporter")
        if report.failed and terminal:
            terminal.write_line(f"\n{report.outcome.upper()} {report.nodeid} ({report.when})")
            terminal.write_line(report.longreprtext[-4000:])


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist report to this process
        config.pluginmanager.register(_Failures(config))


def pytest_collection_finish():
    """What was imported is never garbage."""
    gc.freeze()


def pytest_make_parametrize_id(val):
    """Bytes by their number: what a compressor writes differs from process to process (the hour),
    and pytest-xdist's workers must collect the same names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None
