"""Wrong command lines: every command says what is wrong in one line, with exit code 2."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = "--config=medquad_minilm"
BUILD = ["--source=medquad", "--data-dir=x"]


def unknown(flag: str, nearest: str = "") -> str:
    hint = f"; did you mean {nearest}?" if nearest else ""
    return f"command line: unknown flag {flag}{hint} (--help lists all)"


def start(module: str, arguments: list[str]) -> None:
    """Runs a command in this process, as from the command line."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    if not path.exists() or '__name__ == "__main__"' in path.read_text():
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        importlib.import_module(module).main()


ANY = ["train", "evaluate", "export", "average", "tokenise", "plan"]
CASES = [
    *((f"inf_jax.{name}", [DEMO, "--nonsense=1"], unknown("--nonsense")) for name in ANY),
    *((f"inf_jax.{name}", ["--confg=x"], unknown("--confg", "--config")) for name in ANY),
    *(
        (f"inf_jax.{name}", [], f"command line: --config missing, e.g. {DEMO}")
        for name in ("train", "plan")
    ),
    ("inf_jax.train", ["--resum", DEMO], unknown("--resum", "--resume")),
    (
        "inf_jax.train",
        ["--resume=maybe", DEMO],
        "--resume: 'maybe' is neither true nor false; write --resume or --no-resume",
    ),
    ("inf_jax.train", [DEMO, "--out_dir=x"], unknown("--out_dir", "--config.out_dir")),
    ("inf_jax.train", [DEMO, "--steps", "3"], unknown("--steps", "--config.train.steps")),
    ("inf_jax.train", [DEMO, "-steps=3"], unknown("-steps", "--config.train.steps")),
    ("inf_jax.train", [DEMO, "--optim.lr=3"], unknown("--optim.lr", "--config.optim.lr")),
    (
        "inf_jax.train",
        [DEMO, "stray"],
        "command line: unexpected stray; --help shows the usage",
    ),
    (
        "inf_jax.train",
        [DEMO, "--config.optim.lrr=1"],
        "--config.optim.lrr: no such key; did you mean optim.lr? (--help lists all)",
    ),
    (
        "inf_jax.train",
        [DEMO, "--config.nomodel.normalise"],
        "--config.nomodel.normalise: no such key; did you mean model.normalise? (--help lists all)",
    ),
    (
        "inf_jax.train",
        [DEMO, "--noconfig.model.normalize"],
        "--noconfig.model.normalize: no such key; did you mean model.normalise? (--help lists all)",
    ),
    (
        "inf_jax.train",
        [DEMO, "--noconfig.train.steps"],
        "--noconfig.train.steps: only keys that are True or False; see --help",
    ),
    (
        "inf_jax.train",
        [DEMO, "--config.train.steps=many"],
        "command line: --config.train.steps=many: must be a whole number",
    ),
    ("inf_jax.benchmark", ["--modle=x"], unknown("--modle", "--model")),
    (
        "inf_jax.benchmark",
        ["--model=bm25"],
        "command line: --suite missing, e.g. --suite=followir",
    ),
    ("inf_jax.plan", [DEMO, "--qury-tokens=3"], unknown("--qury-tokens", "--query-tokens")),
    (
        "inf_jax.plan",
        [DEMO],
        "name what to plan for: --topology=v5e:16x16, or --compare=NAME,NAME",
    ),
    (
        "inf_jax.plan",
        [DEMO, "--topology=cpu:8", "--query-tokens=0.5"],
        "--query-tokens: '0.5' is not a whole number",
    ),
    (
        "inf_jax.plan",
        [DEMO, "--compare=cpu:2,cpu:4", "--try"],
        "--try is of the plan of one --topology; leave it out",
    ),
    ("inf_jax.plan", [DEMO, "--slices=0"], "--slices: must be at least 1, not 0"),
    ("inf_jax.plan", [DEMO, "--hbm_gib=nan"], "--hbm-gib: 'nan' is not a finite number"),
    (
        "inf_jax.plan",
        [DEMO, "--search=batch-size"],
        "--search: 'batch-size' is not a choice; did you mean batch_size? "
        "(choose from batch_size, fastest)",
    ),
    (
        "inf_jax.encode",
        ["--txts=x"],
        unknown("--txts", "--texts"),
    ),
    (
        "inf_jax.encode",
        ["--model=m"],
        "command line: --texts and --out missing, e.g. --texts=corpus.jsonl --out=out/vectors",
    ),
    (
        "inf_jax.encode",
        ["--model=m", "--texts=t", "--out=s3://bucket/x"],
        "--out=s3://bucket/x: a local directory, or gs://BUCKET/DIRECTORY",
    ),
    (
        "inf_jax.encode",
        ["--model=m", "--texts=t", "--out=o", "--role=passages"],
        "--role: 'passages' is not a choice; did you mean passage? (choose from passage, query)",
    ),
    ("inf_jax.search", ["--quries=x"], unknown("--quries", "--queries")),
    (
        "inf_jax.search",
        ["--vectors=v", "--queries=q", "--run=r", "--k=0"],
        "--k: must be at least 1, not 0",
    ),
    ("inf_jax.mine", ["--pair=x"], unknown("--pair", "--pairs")),
    (
        "inf_jax.mine",
        ["--model=m"],
        "command line: --pairs and --out missing, e.g. --pairs=pairs.jsonl --out=mined.jsonl",
    ),
    (
        "inf_jax.mine",
        ["--pairs=p", "--out=o"],
        "command line: --model missing, e.g. --model=out/run/export; without one, give "
        "--candidates=bm25",
    ),
    (
        "inf_jax.mine",
        ["--pairs=p", "--out=o", "--fields=qury=x"],
        "--fields: 'qury' is not a choice; did you mean query? "
        "(choose from query, passage, instruction, id)",
    ),
    ("inf_jax.models.hf", ["--chek", "x"], unknown("--chek", "--check")),
    ("inf_jax.models.hf", [], "command line: --check missing, e.g. --check=models/e5-base"),
    ("inf_jax.models.hf", ["--check"], "--check: expected at least one argument"),
    ("data_pipeline.run", ["--dry-rn"], unknown("--dry-rn", "--dry-run")),
    (
        "data_pipeline.run",
        ["--config=data_sample", "--max-usd=x"],
        "--max-usd: 'x' is not a number",
    ),
    (
        "data_pipeline.run",
        ["--config=data_sample", "--max_usd=-1"],
        "--max-usd: must be at least 0, not -1",
    ),
    (
        "data_pipeline.run",
        ["--config=data_sample", "--stages=pairs,biuld"],
        "--stages: 'biuld' is not a choice; did you mean build? (choose from pairs, generate, "
        "filter, judge, score, corpus, report, build)",
    ),
    (
        "data_pipeline.run",
        ["--config=data_sample", "--stages=judge", "--dry-run"],
        "--stages: the estimate of --dry-run is of all stages; leave it out",
    ),
    (
        "data_pipeline.build",
        [],
        "command line: --source and --data-dir missing, e.g. --source=medquad --data-dir=out/data",
    ),
    (
        "data_pipeline.build",
        ["--source=medquad", "--data-dir="],
        "command line: --data-dir missing, e.g. --data-dir=out/data",
    ),
    (
        "data_pipeline.build",
        ["--source=medqad", "--data-dir=x"],
        "--source: 'medqad' is not a choice; did you mean medquad? "
        "(choose from medquad, inf_ir, factory, fields, beir, msmarco, nevir, pubmedqa, synthetic)",
    ),
    # not abbreviated, and said before what is missing
    ("data_pipeline.build", ["--sourc=medquad"], unknown("--sourc", "--source")),
    (
        "data_pipeline.build",
        [*BUILD, "--dev_fraction=half"],
        "--dev-fraction: 'half' is not a number",
    ),
    ("data_pipeline.build", [*BUILD, "--source"], "--source: expected one argument"),
    ("data_pipeline.beam_build", ["--ovrwrite"], unknown("--ovrwrite", "--overwrite")),
    (
        "data_pipeline.beam_build",
        [*BUILD, "--direct_num_worker=2"],
        unknown("--direct_num_worker", "--direct-num-workers"),
    ),
    (
        "data_pipeline.beam_build",
        [*BUILD, "--runner=FlinkRunner", "--near-duplicate=0.8"],
        unknown("--near-duplicate", "--near-duplicates"),
    ),
    ("data_pipeline.beam_tokenise", ["--confg=x"], unknown("--confg", "--config")),
    (
        "data_pipeline.beam_tokenise",
        [DEMO, "--config.data.sorce=x"],
        "--config.data.sorce: no such key; did you mean data.source? (--help lists all)",
    ),
    (
        "launch.bench.command_line",
        ["trian"],
        "benchmark: 'trian' is not a choice; did you mean train? "
        "(choose from train, quality, loss, factory, plan, memory, input, rehearsal, search)",
    ),
    ("launch.bench.command_line", ["train", "--round=3"], unknown("--round", "--rounds")),
    (
        "launch.bench.command_line",
        ["plan", "--train.batch_size=3"],
        unknown("--train.batch_size", "--config.train.batch_size"),
    ),
    (
        "launch.bench.command_line",
        ["plan", "--config.train.batchsize=3"],
        "--config.train.batchsize: no such key; did you mean train.batch_size? (--help lists all)",
    ),
    ("launch.bench.command_line", ["loss", "--config.seed=3"], unknown("--config.seed")),
    ("launch.bench.command_line", ["loss", "--rounds=0"], "--rounds: must be at least 1, not 0"),
    (
        "launch.bench.command_line",
        ["loss", "--batches=64,x"],
        "--batches: 'x' is not a whole number",
    ),
    (
        "launch.bench.command_line",
        ["loss", "--objectives", "uni(P)", "uni(QQ)"],
        "--objectives: 'uni(QQ)' is not a choice; did you mean uni(P)? "
        "(choose from multi(P,IQ), uni(P))",
    ),
    ("launch.bench.command_line", ["search", "--passage=3"], unknown("--passage", "--passages")),
    ("launch.bench.command_line", ["factory", "--record=3"], unknown("--record", "--records")),
    ("launch.bench.ablation", ["--steps=3"], unknown("--steps", "--config.train.steps")),
    (
        "launch.bench.ablation",
        [DEMO, "--masks", "identity", "faithfull"],
        "--masks: 'faithfull' is not a choice; did you mean faithful? "
        "(choose from identity, faithful)",
    ),
    ("launch.bench.ablation", [], f"command line: --config missing, e.g. {DEMO}"),
    ("launch.scaling", ["--query-token=3"], unknown("--query-token", "--query-tokens")),
    (
        "launch.scaling",
        ["v5e-4096", "--query_tokens=x"],
        "--query-tokens: 'x' is not a whole number",
    ),
    (
        "launch.scaling",
        ["--", "--config.sed=1"],
        "--config.sed: no such key; did you mean seed? (--help lists all)",
    ),
    (
        "launch.scaling",
        ["--config.seed=1"],
        "--config.seed=1: write config overrides after --",
    ),
    (
        "launch.scaling",
        ["--configs", "a.py"],
        "--configs needs --topology, e.g. --topology=v5e:16x16",
    ),
    ("launch.device_check", ["--tyny"], unknown("--tyny", "--tiny")),
    ("launch.device_check", ["--minutes=soon"], "--minutes: 'soon' is not a number"),
    (
        "launch.device_check",
        ["--only=losess"],
        "--only: 'losess' is not a choice; did you mean losses? (choose from losses, models, "
        "attention, train, loss speed, retrieval, attention speed)",
    ),
    (
        "inf_jax",
        ["trian"],
        "inf-jax: command: 'trian' is not a choice; did you mean train? "
        "(choose from train, evaluate, export, average, tokenise, encode, search, mine, benchmark, "
        "mteb, plan)",
    ),
    (
        "data_pipeline",
        ["beam-biuld"],
        "inf-jax-data: command: 'beam-biuld' is not a choice; did you mean beam-build? "
        "(choose from run, build, beam-build, beam-tokenise)",
    ),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of runpy: the module is imported already
@pytest.mark.parametrize(("module", "arguments", "line"), CASES)
def test_wrong_command_lines(module, arguments, line, monkeypatch, capsys):
    if "beam" in module:
        pytest.importorskip("apache_beam", reason="Apache Beam is an extra")
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as stop:
        start(module, arguments)
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {line}\n")
    assert stop.value.code == 2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "module", sorted({module for module, *_ in CASES} - {"inf_jax", "data_pipeline"})
)
def test_help_shows_every_flag(module, monkeypatch, capsys):
    if "beam" in module:
        pytest.importorskip("apache_beam", reason="Apache Beam is an extra")
    monkeypatch.setattr(sys, "argv", [module, "--help", "--nonsense"])
    try:
        start(module, [])
    except SystemExit as stop:
        assert not stop.code
    out, err = capsys.readouterr()
    assert len(out.splitlines()) > 10 and not err
    assert "==SUPPRESS==" not in out and "--no-" not in out.replace("--no-resume", "")
