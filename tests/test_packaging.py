"""The built package alone, outside the repository, is enough to run the commands."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.samples import shorten

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What a wheel holds, as a directory for PYTHONPATH."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    for name in ("setup.py", "README.md", "LICENSE", "inf_jax", "data_pipeline", "configs"):
        path = ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / name)
    shorten(source / "data_pipeline")
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`python` with only the built package of ours on its path."""
    code = (  # an editable install of this checkout must not help out
        "import runpy, sys; sys.meta_path[:] = [f for f in sys.meta_path "
        "if 'editable' not in getattr(f, '__module__', '') + getattr(f, '__name__', '')]; "
        f"sys.path[:] = [{str(installed)!r}] + [p for p in sys.path if p != {str(ROOT)!r}]; "
        "sys.argv.pop(0); runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env={"PATH": "", "HF_HUB_OFFLINE": "1"}
    )


def test_a_shipped_config_is_found_by_name_and_data_are_asked_for(installed, tmp_path):
    done = run(installed, tmp_path, "inf_jax", "train", "--config=medquad_minilm")
    assert done.returncode == 1, done.stdout
    assert "python -m data_pipeline.build --source=medquad --data-dir=out/data" in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir()), "a run that cannot start leaves nothing"


def test_the_sample_of_the_factory_is_found(installed, tmp_path):
    arguments = ("data_pipeline", "run", "--config=data_sample", "--dry-run")
    done = run(installed, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "nothing was sent" in done.stdout


def test_the_pipelines_files_are_inside(installed, tmp_path):
    done = run(installed, tmp_path, "data_pipeline", "build", "--source=medquad", "--data-dir=d")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "d" / "inf_ir" / "medquad" / "1.0.0" / "dataset_info.json").exists()
    inside = installed / "data_pipeline"
    for pattern in (
        "llm/prices.json",
        "llm/answer_schemas/*.json",
        "prompts/*",
        "report/audit_page/*.js",
    ):
        assert list(inside.glob(pattern)), pattern


@pytest.mark.parametrize("package", ["inf_jax", "data_pipeline"])
def test_the_console_script_lists_its_commands_without_jax(package):
    code = (
        "import sys, atexit; atexit.register(lambda: print([n for n in ('jax', 'torch', "
        "'tensorflow_datasets') if n in sys.modules])); "
        f"sys.argv = ['x', '--help']; from {package}.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *usage, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    commands = sorted(
        path.stem.replace("_", "-")
        for path in (ROOT / package).glob("*.py")
        if '__name__ == "__main__"' in path.read_text() and path.stem != "__main__"
    )
    assert sorted(line.split()[0] for line in usage[2:]) == commands


def test_an_unknown_command_names_the_nearest():
    command = [sys.executable, "-m", "inf_jax", "trian"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "command: 'trian' is not a choice; did you mean train?" in done.stderr
