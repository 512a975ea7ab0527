"""Nested dicts of arrays (parameters, optimiser state) and the paths of their leaves."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def path_name(path) -> str:
    """`params/shared/blocks/up_kernel` of a JAX key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_vector(path) -> bool:
    """Whether a parameter at a JAX key path is a bias or the scale of a norm, which stay float32
    and have no weight decay."""
    return path_name(path).endswith(("bias", "scale"))


def leaf_paths(tree: Any) -> list[str]:
    """The path of every leaf, in JAX's order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of leaf path to leaf."""
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= flatten(value, path + "/") if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping) -> dict:
    """The inverse of `flatten`."""
    tree: dict = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def join_trees(one: Mapping, other: Mapping) -> dict:
    """Two nested dicts without a common leaf as one."""
    whole = dict(one)
    for name, value in other.items():
        whole[name] = join_trees(whole[name], value) if name in whole else value
    return whole


def select(tree: Mapping, wanted: Callable[[str], bool]) -> dict:
    """The leaves whose path is wanted; dicts left empty are dropped."""
    return unflatten({path: x for path, x in flatten(tree).items() if wanted(path)})
