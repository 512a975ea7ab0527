"""The shape of the code: imports go down, no circles, small modules that say what they are for."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up; packages of one line do not import each other. What is not named here (the
# commands) stands on top and is imported by nobody.
LAYERS = {
    "inf_jax": [
        "core",
        "io text losses metrics distributed",
        "config models",
        "models/hf data monitoring checkpoints optim",
        "retriever planning evaluation inspection",
        "benchmarks",
        "training hf_export",
        "vectors",
    ],
    "data_pipeline": ["llm sources", "items", "quality report", "config dataset", "stages"],
}


def package_of(module: tuple[str, ...], names: set[str]) -> str:
    """The longest layer name that a module's path begins with; "" for a command."""
    matches = ["/".join(module[:n]) for n in (1, 2) if "/".join(module[:n]) in names]
    return matches[-1] if matches else ""


def upward(root: Path, top: str) -> dict[str, int]:
    """Every import inside `top` that does not go down, with its line."""
    level = {name: n for n, line in enumerate(LAYERS[top]) for name in line.split()}
    problems = {}
    for path in sorted((root / top).rglob("*.py")):
        here = path.relative_to(root / top).with_suffix("").parts
        mine = package_of(here, set(level))
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(top):
                continue
            for alias in node.names:
                target = (*node.module.split(".")[1:], alias.name)
                theirs = package_of(target, set(level))
                if theirs == mine or (not mine and theirs):
                    continue
                if not theirs and node.module == top and alias.name in ("load", "__version__"):
                    continue  # the package's own face
                if not theirs or level[theirs] >= level[mine]:
                    problems[f"{path.relative_to(root)}: {'.'.join(target)}"] = node.lineno
    return problems


@pytest.mark.parametrize("top", LAYERS)
def test_imports_go_down(top):
    problems = upward(ROOT, top)
    assert not problems, f"upward imports (with their lines): {problems}"


def test_training_code_knows_no_pipeline():
    """inf_jax never imports data_pipeline."""
    sources = {path: path.read_text() for path in (ROOT / "inf_jax").rglob("*.py")}
    assert not [
        str(path)
        for path, text in sources.items()
        if "import data_pipeline" in text or "from data_pipeline" in text
    ]


def modules(root: Path) -> list[Path]:
    """All modules of both packages."""
    return sorted(path for top in LAYERS for path in (root / top).rglob("*.py"))


def imported(path: Path, known: set[str]) -> set[str]:
    """The modules of ours that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names & known


def test_no_module_imports_itself_in_a_circle():
    """Also through imports inside functions; faces (`__init__`) only hand on and are left out."""
    paths = [path for path in modules(ROOT) if path.name != "__init__.py"]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    waiting = {name: imported(path, set(names)) - {name} for name, path in names.items()}
    while ready := [name for name, needed in waiting.items() if not needed & waiting.keys()]:
        for name in ready:
            del waiting[name]
    assert not waiting, f"in or above a circle: {sorted(waiting)}"


def test_sizes():
    """Modules of at most 330 lines, packages of 3 to 12 modules, functions of at most 8 parameters
    (but for the public contrastive_loss)."""
    long = {
        path.name: n for path in modules(ROOT) if (n := len(path.read_text().splitlines())) > 330
    }
    assert not long
    for folder in {path.parent for path in modules(ROOT)}:
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        assert 3 <= count <= 12, folder
    wide = []
    for path in modules(ROOT):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
                count = len([n for n in names if n not in ("self", "cls")])
                if count + len(node.args.kwonlyargs) > 8 and node.name != "contrastive_loss":
                    wide.append(f"{path}:{node.lineno} {node.name}")
    assert not wide


def test_every_module_says_in_one_sentence_what_it_is_for():
    bad = {}
    for path in modules(ROOT):
        if path.name == "__init__.py" and not path.read_text():
            continue
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        first = text.partition("\n")[0]
        if not first.endswith((".", ":")) or len(first) <= 20:
            bad[str(path.relative_to(ROOT))] = first
    assert not bad


# Names that several modules define on purpose.
SHARED = {
    "main": "the entry point of each command",
    "read": "the one function of each source",
    "defaults": "the default config of each package, which config files import",
    "attend": "exports ship their own copy, which does not import inf_jax",
}


def named(node: ast.stmt) -> list[str]:
    """The names that a top-level statement defines: a class, a function or constants."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    inner = [part for target in targets for part in getattr(target, "elts", [target])]
    return [part.id for part in inner if isinstance(part, ast.Name)]


def test_public_names_have_one_owner():
    """No two public top-level classes, functions or constants of both packages share a name."""
    owners = {}
    for path in modules(ROOT):
        for node in ast.parse(path.read_text()).body:
            for name in set(named(node)):
                if not name.startswith("_"):
                    owners.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    shared = {name: paths for name, paths in owners.items() if len(paths) > 1}
    assert not {name: paths for name, paths in shared.items() if name not in SHARED}
    assert shared.keys() == SHARED.keys()


LATE = "tensorflow_datasets tensorflow matplotlib pandas pyarrow torch sentence_transformers mteb"


def test_what_is_slow_to_import_is_imported_late():
    """In inf_jax: within functions, but for the module that an export carries for PyTorch."""
    found = {}
    for path in (ROOT / "inf_jax").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if slow := {name.partition(".")[0] for name in names} & set(LATE.split()):
                found[path.name] = slow
    assert found == {"instructed_encoder.py": {"torch"}}
