"""Packages import downwards only; within a line below, not each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up. What is not named here (the commands) stands on top and is imported by nobody.
LAYERS = {
    "inf_jax": [
        "core",
        "io text losses metrics distributed",
        "config models",
        "models/hf data monitoring checkpoints",
        "retriever planning evaluation",
        "training hf_export",
    ],
    "data_pipeline": ["llm sources", "items", "quality report", "config dataset", "stages"],
}

# What step 2 still has to turn ("file: module.name"); goes when it is empty.
KNOWN: dict[str, set[str]] = {
    "inf_jax": set(),
    "data_pipeline": set(),
}


def room(module: tuple[str, ...], names: set[str]) -> str:
    """The longest layer name that a module's path begins with; "" for a command."""
    found = ["/".join(module[:n]) for n in (1, 2) if "/".join(module[:n]) in names]
    return found[-1] if found else ""


def upward(root: Path, top: str) -> dict[str, int]:
    """Every import inside `top` that does not go down, with its line."""
    level = {name: n for n, line in enumerate(LAYERS[top]) for name in line.split()}
    problems = {}
    for path in sorted((root / top).rglob("*.py")):
        here = path.relative_to(root / top).with_suffix("").parts
        mine = room(here, set(level))
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(top):
                continue
            for alias in node.names:
                target = (*node.module.split(".")[1:], alias.name)
                theirs = room(target, set(level))
                if theirs == mine or (not mine and theirs):
                    continue
                if not theirs and node.module == top and alias.name in ("load", "__version__"):
                    continue  # the package's own face
                if not theirs or level[theirs] >= level[mine]:
                    problems[f"{path.relative_to(root)}: {'.'.join(target)}"] = node.lineno
    return problems


@pytest.mark.parametrize("top", LAYERS)
def test_imports_go_down(top):
    found = upward(ROOT, top)
    new = {name: line for name, line in found.items() if name not in KNOWN[top]}
    assert not new, f"upward imports (with their lines): {new}"
    assert not KNOWN[top] - set(found), "mended: strike these from KNOWN"


def test_training_code_knows_no_pipeline():
    """inf_jax never imports data_pipeline."""
    sources = {path: path.read_text() for path in (ROOT / "inf_jax").rglob("*.py")}
    assert not [
        str(path)
        for path, text in sources.items()
        if "import data_pipeline" in text or "from data_pipeline" in text
    ]
