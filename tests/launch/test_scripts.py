"""setup.py, the constraints and the shell scripts; setup_env.sh with stubs of python and pip."""

import ast
import importlib.metadata
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((ROOT / "launch").rglob("*.sh")), ROOT / ".ci" / "run"]
# from extras: imported within functions only
OPTIONAL = set("torch sentence_transformers peft apache_beam gcsfs fsspec google".split())
OPTIONAL |= {"datasets", "mteb"}
# ... except in these: one is copied into exports, which need torch; one is imported with Beam
OF_EXTRAS = {"instructed_encoder.py", "beam_steps.py"}


@pytest.fixture(scope="module")
def metadata() -> dict:
    """What setup.py gives to setuptools."""
    import setuptools

    with pytest.MonkeyPatch.context() as patch:
        given: dict = {}
        patch.setattr(setuptools, "setup", lambda **keys: given.update(keys))
        runpy.run_path(str(ROOT / "setup.py"))
    return given


PINNED = {"constraints.txt": "3.11", "constraints_py312.txt": "3.12"}  # for which Python


@pytest.fixture(scope="module", params=PINNED)
def constraints(request) -> dict[str, str]:
    """A file of launch/ as {canonical name: version}, and "python"."""
    lines = (ROOT / "launch" / request.param).read_text().splitlines()
    exact = [re.fullmatch(r"([\w.-]+)==([\w.]+)", li) for li in lines if not li.startswith("#")]
    assert all(exact), "a line that is not NAME==VERSION"
    found = {canonicalize_name(match[1]): match[2] for match in exact}
    return {**found, "python": PINNED[request.param]}


def _imports(path: Path, *, everywhere: bool) -> set[str]:
    """Packages that a module imports; without `everywhere` those outside its functions."""
    tree = ast.parse(path.read_text())
    if not everywhere:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {_package(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(_package(node.module))
    return names


def _package(module: str) -> str:
    """The package of a distribution: the first name, or that of protobuf, which shares it."""
    return "google.protobuf" if module.startswith("google.protobuf") else module.split(".")[0]


def _shipped() -> list[Path]:
    return [p for d in ("inf_jax", "data_pipeline") for p in sorted((ROOT / d).rglob("*.py"))]


def test_base_install_has_no_framework_but_jax(metadata):
    base = {canonicalize_name(Requirement(line).name) for line in metadata["install_requires"]}
    assert "jax" in base
    assert not base & {"torch", "tensorflow", "tensorflow-cpu", "tf-keras", "sentence-transformers"}


def test_torch_is_pinned_wherever_it_is_required(metadata):
    for extra in ("torch", "minilm"):  # minilm requires sentence-transformers, which requires torch
        assert "torch==2.13.0" in metadata["extras_require"][extra]


def test_requirements_are_what_the_packages_import(metadata):
    base = {canonicalize_name(Requirement(line).name) for line in metadata["install_requires"]}
    pipeline = metadata["extras_require"]["pipeline"]
    benchmark = metadata["extras_require"]["benchmark"]
    allowed = {"inf_jax": base | {canonicalize_name(Requirement(li).name) for li in benchmark}}
    allowed["data_pipeline"] = base | {canonicalize_name(Requirement(li).name) for li in pipeline}
    distributions = importlib.metadata.packages_distributions() | {"google.protobuf": ["protobuf"]}
    used = set()
    for path in _shipped():
        names = _imports(path, everywhere=True) - allowed.keys() - OPTIONAL
        for name in names - sys.stdlib_module_names:
            assert name in distributions, f"{path} imports {name}"
            own = path.relative_to(ROOT).parts[0]
            required = {canonicalize_name(d) for d in distributions[name]} & allowed[own]
            assert required, f"{path} imports {name}, which setup.py does not require"
            used |= required
    assert allowed["data_pipeline"] - used == {"importlib-resources"}  # of tensorflow-datasets


def test_shipped_modules_import_no_torch_and_no_tensorflow():
    assert _shipped()
    for path in _shipped():
        if path.name not in OF_EXTRAS:
            assert not _imports(path, everywhere=False) & OPTIONAL, path
        assert "tensorflow" not in _imports(path, everywhere=True), path


def test_wheel_has_every_data_file_and_the_two_packages(metadata):
    for package in ("data_pipeline", "inf_jax"):
        folder, patterns = ROOT / package, metadata["package_data"][package]
        shipped = {p for pattern in patterns for p in folder.glob(pattern) if p.is_file()}
        files = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        assert {p for p in files if p.suffix != ".py"} == shipped
    assert {"inf_jax", "inf_jax.models", "data_pipeline.sources"} <= set(metadata["packages"])
    assert {p.split(".")[0] for p in metadata["packages"]} == {"inf_jax", "data_pipeline"}


def test_version_is_that_of_the_module(metadata):
    import inf_jax

    assert metadata["version"] == inf_jax.__version__


def test_constraints_satisfy_the_ranges(metadata, constraints):
    lines = [*metadata["install_requires"]]
    for extra in ("torch", "minilm", "pipeline", "beam", "gcs", "peft", "test"):
        lines += metadata["extras_require"][extra]
    for requirement in map(Requirement, lines):
        version = constraints[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_constraints_fit_any_machine(constraints):
    assert constraints["torch"] == "2.13.0"  # without +cpu, which PyPI does not have
    assert not [n for n in constraints if re.search("nvidia|cuda|triton|tensorflow-cpu|inf-jax", n)]


def test_constraints_are_of_the_newest_jax_of_their_python(constraints):
    assert constraints["jax"] == constraints["jaxlib"]
    assert constraints["jax"].startswith({"3.11": "0.10.", "3.12": "0.11."}[constraints["python"]])


def test_constraints_of_tpu_workers_add_to_the_others(metadata, constraints):
    lines = (ROOT / "launch" / "constraints_tpu.txt").read_text().splitlines()
    more = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert not more.keys() & constraints.keys()
    of_workers = {"python_version": "3.11"}
    aot = map(Requirement, metadata["extras_require"]["aot"])  # the release of jax's own pin
    [libtpu] = [r for r in aot if r.marker.evaluate(of_workers)]
    assert libtpu.specifier.contains(more["libtpu"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_sound(script):
    assert script.stat().st_mode & 0o111, "not executable"
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_ci_runs_the_tests():
    assert "launch/test.sh" in (ROOT / ".ci" / "run").read_text()


def test_demo_has_help_and_refuses_unknown_arguments(tmp_path):
    demo = ["bash", ROOT / "launch" / "demo.sh"]
    done = subprocess.run([*demo, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--config.KEY=VALUE" in done.stdout
    done = subprocess.run([*demo, "--steps"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--steps" in done.stderr


class Machine:
    """A copy of the scripts on a machine whose python is a stub that records its calls.

    pip fails in a call that contains the word `fail`; with the word `kill` the script is killed.
    `python3` is of version 3.11, `new-python` of 3.12.
    """

    STUB = r"""#!/bin/sh
echo "$(basename "$0") $*" >> "$STUB_LOG"
case "$*" in
  "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-c print"*) echo VERSION ;;
  "-c "*"< (3, 12)"*) [ VERSION = 3.12 ] || exit 1 ;;
  "-m pip install"*"$STUB_KILL"*) [ -z "$STUB_KILL" ] || kill -9 "$PPID" ;;
esac
case "$*" in "-m pip install"*"$STUB_FAIL"*) [ -z "$STUB_FAIL" ] || exit 1 ;; esac
"""

    def __init__(self, root: Path):
        self.root, self.bin, self.log = root / "project", root / "bin", root / "log"
        (self.root / "launch").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("setup.py", "launch/setup_env.sh", *(f"launch/{file}" for file in PINNED)):
            shutil.copy(ROOT / name, self.root / name)
        for tool in "bash sh cat cp rm mv mkdir grep dirname basename sha256sum".split():
            (self.bin / tool).symlink_to(shutil.which(tool))
        for name, version in {"python3": "3.11", "new-python": "3.12"}.items():
            (self.bin / name).write_text(self.STUB.replace("VERSION", version))
            (self.bin / name).chmod(0o755)

    def setup_env(
        self, *arguments: str, fail: str = "", kill: str = "", **environment: str
    ) -> tuple[int, str, list[str]]:
        """Runs setup_env.sh from another directory: exit code, output, calls of pip and venv."""
        self.log.write_text("")
        done = subprocess.run(
            [self.bin / "bash", self.root / "launch" / "setup_env.sh", *arguments],
            cwd=self.bin,
            env={
                "PATH": str(self.bin),
                "STUB_LOG": str(self.log),
                "STUB_FAIL": fail,
                "STUB_KILL": kill,
                **environment,
            },
            capture_output=True,
            text=True,
        )
        lines = self.log.read_text().splitlines()
        calls = [line for line in lines if "-m" in line and "--version" not in line]
        return (
            done.returncode,
            done.stdout + done.stderr,
            [c for c in calls if "--version" not in c],
        )


def test_setup_env_installs_torch_first_and_once(tmp_path):
    machine = Machine(tmp_path)
    code, output, calls = machine.setup_env()
    assert code == 0, output
    venv, torch, rest = calls
    assert venv == "python3 -m venv .venv"
    assert "pip install" in torch and "torch==2.13.0" in torch and "--no-deps" in torch
    assert (
        "-c launch/constraints.txt -e .[torch,minilm,pipeline,beam,gcs,peft,benchmark,test]" in rest
    )
    code, output, calls = machine.setup_env()
    assert (code, calls) == (0, [])
    assert "nothing to install" in output


def test_setup_env_of_another_python_lies_beside_the_first(tmp_path):
    machine = Machine(tmp_path)
    machine.setup_env()
    code, output, calls = machine.setup_env(PYTHON="new-python", EXTRAS="pipeline,test")
    assert code == 0, output
    venv, rest = calls  # none of these extras needs torch
    assert venv == "new-python -m venv .venv-3.12"
    assert "-c launch/constraints_py312.txt -e .[pipeline,test]" in rest
    assert "-c launch/constraints_py312.txt" in machine.setup_env(PYTHON="new-python")[2][-1]
    assert "nothing to install" in machine.setup_env()[1]
    assert machine.setup_env("--where", PYTHON="new-python")[:2] == (0, ".venv-3.12\n")
    assert machine.setup_env("--where")[:2] == (0, ".venv\n")
    code, output, calls = machine.setup_env(PYTHON="/no/such/python")
    assert (code, calls) == (1, []) and "PYTHON=/no/such/python: cannot be run" in output


def test_setup_env_installs_again_when_the_set_changes(tmp_path):
    machine = Machine(tmp_path)
    machine.setup_env()
    with open(machine.root / "setup.py", "a") as file:
        file.write("# changed\n")
    code, _, calls = machine.setup_env()
    assert code == 0
    assert len(calls) == 2 and "-m venv" not in calls[0]  # into the same environment


@pytest.mark.parametrize("ending", ["fail", "kill"])
def test_setup_env_starts_over_after_an_interrupted_installation(tmp_path, ending):
    machine = Machine(tmp_path)
    code, _, calls = machine.setup_env(**{ending: "constraints.txt"})
    assert code != 0
    assert len(calls) == 3
    code, output, calls = machine.setup_env()
    assert code == 0
    assert "starting from scratch" in output
    assert len(calls) == 3 and "-m venv" in calls[0]


def test_setup_env_refuses_an_old_python(tmp_path):
    machine = Machine(tmp_path)
    (machine.bin / "python3").write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.9.2\n")
    code, output, _ = machine.setup_env()
    assert code == 1
    assert "error: no Python 3.11 or newer" in output and "Python 3.9.2" in output
