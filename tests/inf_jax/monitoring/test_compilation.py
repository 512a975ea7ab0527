"""The persistent cache of compiled programs: where it lies, and that a second start hits it."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from inf_jax import train
from inf_jax.monitoring import compilation
from inf_jax.monitoring.compilation import CompileCounter, use_compilation_cache
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.training import automatic

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_persistent_cache_enable_xla_caches",
)


@pytest.fixture
def no_cache(monkeypatch):
    """As in a new process whose environment names no cache; what was there comes back."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    for name in OPTIONS:
        monkeypatch.delenv(name.upper(), raising=False)
    new_process()
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    new_process()


def new_process():
    """Forgets what was compiled, and the cache."""
    jax.clear_caches()
    compilation_cache.reset_cache()


def test_a_second_start_compiles_nothing(no_cache, tiny_config, tmp_path, capsys, monkeypatch):
    """Resumed from a checkpoint in the middle, as on a host that replaces another; the form that
    the first start compiled and chose is not compiled again either."""
    tiny_config.model.remat = tiny_config.train.chunks_per_device = "auto"
    monkeypatch.setattr(automatic, "device_memory", lambda: 2.0**30)
    tiny_config.train.compilation_cache = str(tmp_path / "programs")
    tiny_config.train.health = False  # compiles in half the time
    tiny_config.loss.engine = "dense"
    out_dir = Path(tiny_config.out_dir)
    lines = []
    for _ in range(2):
        train.main(tiny_config)
        lines.append(read_metrics(out_dir / "timing.jsonl")[-1])
        shutil.rmtree(out_dir / "checkpoints" / "4")  # as if it had been stopped after step 2
        new_process()
    first, both = lines
    chosen = json.loads((out_dir / "automatic.json").read_text())
    assert len(chosen["searched"]) == 2 and chosen["values"]["train.chunks_per_device"] == 1
    saved = json.loads((out_dir / "config.json").read_text())
    assert saved["model"]["remat"] == chosen["values"]["model.remat"] in ("none", "dots")
    assert first["programs_compiled"] > 10 and first["compile_s"] > 0
    assert first["programs_cached"] < first["programs_compiled"]
    assert both["programs_compiled"] == first["programs_compiled"]
    assert both["programs_cached"] > first["programs_cached"]
    out = capsys.readouterr().out
    assert out.count("auto: model.remat=") == 2 and "changed since then" not in out
    assert out.index("the fastest of 2 forms") < out.index("as chosen at the first start")
    # the first step has found the program that was compared
    assert len(list((tmp_path / "programs").glob("jit_step-*-cache"))) == 2
    said = out.split("steps 2 to 4")[1]
    assert "compiled so far" in said and "compilation cache" in said
    assert "compiled: 0 programs, " in said and "programs from the cache" in said


def test_counts_of_programs(no_cache, tmp_path):
    def count(cached: bool) -> CompileCounter:
        new_process()
        if cached:
            assert use_compilation_cache(str(tmp_path)) == str(tmp_path)
        x = jnp.arange(3.0)
        with CompileCounter() as found:
            jax.jit(lambda x: x * 7 + 1)(x).block_until_ready()
        jax.jit(lambda x: x * 9)(x)  # closed: not counted
        return found

    for cached, expected in ((False, (1, 0)), (True, (1, 0)), (True, (0, 1))):
        found = count(cached)
        assert (found.compiled, found.cached) == expected and found.seconds > 0
    assert str(found).startswith("0 programs, 1 from the cache, ")
    assert json.dumps(found.figures())  # plain numbers


def test_where_the_cache_lies(no_cache, monkeypatch, tmp_path):
    def found(wanted: str, **options) -> str:
        jax.config.update("jax_compilation_cache_dir", None)
        return use_compilation_cache(wanted, **options)

    run, home = tmp_path / "run", tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert found("auto", out_dir=run) == found("auto") == found("") == ""  # on a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert found("auto", out_dir=run) == found("auto") == str(home / ".cache/inf_jax/compiled")
    assert not home.exists()  # JAX makes it with the first program
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert found("auto", out_dir=run) == str(run / "compiled")
    assert found("auto") == str(home / ".cache/inf_jax/compiled")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert found("auto") == str(tmp_path / "xdg/inf_jax/compiled")
    assert found("") == ""
    jax.config.update("jax_compilation_cache_dir", "/of/the/environment")
    assert use_compilation_cache("auto") == use_compilation_cache("") == "/of/the/environment"


def test_a_directory_that_cannot_be_written_costs_a_warning(no_cache, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert use_compilation_cache(str(file / "programs")) == ""
    assert not jax.config.jax_compilation_cache_dir
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"no compilation cache in {file / 'programs'}: ")


def test_cache_in_a_bucket(no_cache, run_dir, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    where = use_compilation_cache("auto", out_dir=run_dir)
    assert where == f"{run_dir}/compiled" and compilation.AUTO == "auto"
    assert jax.config.jax_persistent_cache_enable_xla_caches == "none"
    counts = []
    for _ in range(2):
        new_process()
        x = jnp.arange(3.0)
        with CompileCounter() as found:
            jax.jit(lambda x: x * 11 + 1)(x).block_until_ready()
        counts.append((found.compiled, found.cached))
    assert counts == [(1, 0), (0, 1)]
