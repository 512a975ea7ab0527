"""Tokenising on Apache Beam writes the same bytes as one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data_pipeline.dataset.builder import InfIr
from inf_jax.config.command_line import parse
from inf_jax.config.defaults import defaults, run_config
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import text_config, tokenised_split, training_wordings
from inf_jax.data.tokenise import tokenise
from inf_jax.models.hf.backbone import load_model

pytest.importorskip("apache_beam", reason="Apache Beam is an extra: pip install -e '.[beam]'")

from data_pipeline import beam_tokenise
from tests.data_pipeline.beam_corpus import THREADS, direct, tree, write_corpus

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    """A training config for a dataset of three text shards."""
    data = tmp_path_factory.mktemp("data")
    builder = InfIr(config="factory", data_dir=data, path_train=source, dev_fraction=0.0)
    builder.download_and_prepare(
        download_dir=data / "downloads",
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )
    config = defaults()
    config.data.dir, config.data.source = str(data), "factory"
    return config


@pytest.fixture(scope="module")
def tokens(run, tmp_path_factory):
    """The records that one process writes."""
    config = run_config(run)
    return tokenise(
        Path(run.data.dir, "inf_ir", "factory", "1.0.0"),
        "train",
        tokenizer=load_model(config).tokenizer,
        text=text_config(config),
        out_dir=tmp_path_factory.mktemp("tokens"),
        progress=False,
        examples_per_shard=7,
    )


def test_tokenised_bytes(run, tokens, tmp_path):
    run = run.copy_and_resolve_references()
    data = tmp_path / "data"
    data.mkdir()
    (data / "inf_ir").symlink_to(Path(run.data.dir, "inf_ir"))
    run.data.dir = str(data)

    def call():
        return beam_tokenise.tokenise_on_beam(
            run_config(run), direct(*THREADS), examples_per_shard=7
        )

    directory = call()
    assert directory.name == tokens.name
    assert tree(directory) == tree(tokens)
    assert len(list(directory.glob("*.tfrecord"))) > 5

    # killed: a shard without its index, no manifest; the others are not written again
    (directory / "manifest.json").unlink()
    index = sorted(directory.glob("*.index.npz"))[2]
    index.unlink()
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert call() == directory
    assert tree(directory) == tree(tokens)
    after = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    again = {path.name for path in after if after[path] != before.get(path)}
    assert again == {"manifest.json", index.name, index.name.removesuffix(".index.npz")}


def test_tokenising_by_processes(run):
    """The command as a user runs it; training then reuses the records."""
    command = [sys.executable, "-m", "data_pipeline.beam_tokenise"]
    command += ["--config=configs/medquad_minilm.py", "--config.data.source=factory"]
    command += [f"--config.data.dir={run.data.dir}", "--direct_running_mode=multi_processing"]
    result = subprocess.run(
        [*command, "--direct_num_workers=2"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    directory = Path(result.stdout.splitlines()[-1].removeprefix("tokenised records: "))
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    config = run_config(run)
    dataset = tokenised_split(config, load_model(config).tokenizer, "train")
    assert dataset.directory == directory
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_each_wording_is_tokenised(run, tmp_path, capsys, monkeypatch):
    """As training opens them; what it would read in windows is refused."""
    (tmp_path / "inf_ir").symlink_to(Path(run.data.dir, "inf_ir"))
    flags = ["--config=medquad_minilm", f"--config.data.dir={tmp_path}"]
    flags += ["--config.data.source=factory", "--config.data.drop_instructions=0.1"]
    beam_tokenise.main([*flags, *THREADS])
    printed = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokenised").rglob("*")}
    config = run_config(parse(["train", *flags]))
    dataset = training_wordings(config, load_model(config).tokenizer)
    assert [str(one.directory) for one in dataset.sources] == printed
    assert len(set(printed)) == 2
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokenised").rglob("*")}
    assert after == before

    monkeypatch.setattr(beam_tokenise, "is_large", lambda *_, **__: True)
    with pytest.raises(UserError, match=r"read \d+ examples in windows, .*shuffle=global here"):
        beam_tokenise.tokenise_on_beam(run_config(run), direct())


def test_damaged_text_shard(run, tmp_path):
    run = run.copy_and_resolve_references()
    final = tmp_path / "inf_ir" / "factory" / "1.0.0"
    final.mkdir(parents=True)
    for path in Path(run.data.dir, "inf_ir", "factory", "1.0.0").iterdir():
        (final / path.name).write_bytes(path.read_bytes())
    run.data.dir = str(tmp_path)
    shard = sorted(final.glob("*-train.tfrecord-*"))[1]
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=rf"^{shard}: record \d+ .*checksum of its data is wrong"):
        beam_tokenise.tokenise_on_beam(run_config(run), direct())
    assert not list((tmp_path / "tokenised").rglob("manifest.json"))


def test_main_says_what_is_wrong(capsys):
    with pytest.raises(SystemExit) as stop:
        beam_tokenise.main(
            ["--config=configs/medquad_minilm.py", "--config.data.dir=gs://bucket/data"]
        )
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(
        "error: data.dir=gs://bucket/data, data.shuffle=auto: workers write the global order"
    )
