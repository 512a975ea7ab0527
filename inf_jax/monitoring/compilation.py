"""Keeps compiled programs between the starts of a command, and counts what was compiled.

`train.compilation_cache` names the directory of JAX's persistent compilation cache; what a program
is found by there is its code, the versions of JAX and of the compiler, the flags and the kind of
the devices. "auto" is

- OUT_DIR/compiled for a run of several processes or in a bucket: only the primary process writes,
  so all must see one directory, and a host that replaces a preempted one has nothing of its own;
- else ~/.cache/inf_jax/compiled (or below XDG_CACHE_HOME);
- none on a CPU: its programs hold instructions of that very CPU, but a home directory may be shared
  with hosts of other kinds, and XLA rejects such a program loudly or crashes (jax issue 38445);
  nor do the processes of a run on CPUs find each other's programs.

JAX_COMPILATION_CACHE_DIR of the environment replaces all this. The cache may be deleted at any
time; whoever can write to it can run code in the commands that read it.
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

import jax

from inf_jax.core.choices import AUTO
from inf_jax.core.errors import UserError, first_line
from inf_jax.io import storage

COMPILED = "/jax/core/compile/backend_compile_duration"  # or loaded from the cache
CACHE_HIT = "/jax/compilation_cache/cache_hits"


def use_compilation_cache(wanted: str, *, out_dir: storage.AnyPath | None = None) -> str:
    """Sets JAX's compilation cache for this process, before it compiles anything.

    A directory that cannot be written to costs a warning on stderr, not the run.

    Args:
      wanted: `train.compilation_cache`.
      out_dir: of a run whose processes share it; None for a command of one process.

    Returns:
      The directory; "" for none.
    """
    if jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR
        return jax.config.jax_compilation_cache_dir
    directory = _automatic(out_dir) if wanted == AUTO else wanted
    if not directory:
        return ""
    try:
        storage.check_access(storage.as_path(directory))
    except (OSError, UserError) as error:
        if jax.process_index() == 0:
            print(f"no compilation cache in {directory}: {first_line(error)}", file=sys.stderr)
        return ""
    jax.config.update("jax_compilation_cache_dir", directory)
    # small programs too: a run has about a hundred, and looks each up in any case
    _set_unless_in_environment("jax_persistent_cache_min_compile_time_secs", 0.0)
    _set_unless_in_environment("jax_persistent_cache_min_entry_size_bytes", -1)
    if storage.is_bucket(directory):  # XLA's own cache of tuned kernels takes local paths only
        _set_unless_in_environment("jax_persistent_cache_enable_xla_caches", "none")
    return directory


def _automatic(out_dir: storage.AnyPath | None) -> str:
    if jax.default_backend() == "cpu":
        return ""
    if out_dir is not None and (storage.is_bucket(out_dir) or jax.process_count() > 1):
        return str(out_dir / "compiled")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return str(Path(cache).expanduser() / "inf_jax" / "compiled")


def _set_unless_in_environment(option: str, value: object) -> None:
    if option.upper() not in os.environ:
        jax.config.update(option, value)


class CompileCounter(contextlib.AbstractContextManager):
    """Counts what this process compiles while it is open.

    Attributes:
      begun: when it was opened, seconds since the epoch.
      seconds: spent in compiling, and in loading from the cache.
      compiled, cached: programs.
    """

    def __init__(self):
        self.begun, self.seconds, self.compiled, self.cached = time.time(), 0.0, 0, 0
        self._lock = threading.Lock()  # programs compile in threads, too

    def __enter__(self) -> "CompileCounter":
        self.begun = time.time()
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        jax.monitoring.unregister_event_listener(self._on_event)

    def __str__(self) -> str:
        cached = f", {self.cached} from the cache" if self.cached else ""
        return f"{self.compiled} programs{cached}, {self.seconds:.1f} s"

    def figures(self) -> dict[str, float]:
        """The attributes by the names that timing.jsonl has for them."""
        return {
            "compile_s": round(self.seconds, 3),
            "programs_compiled": self.compiled,
            "programs_cached": self.cached,
        }

    def _on_duration(self, event: str, seconds: float, **_: object) -> None:
        if event == COMPILED:
            with self._lock:
                self.seconds += seconds
                self.compiled += 1

    def _on_event(self, event: str, **_: object) -> None:
        if event == CACHE_HIT:  # is followed by COMPILED
            with self._lock:
                self.cached += 1
                self.compiled -= 1
