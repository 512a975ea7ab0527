"""Nested dicts and the paths of their leaves."""

from inf_jax.core.trees import flatten, join_trees, leaf_paths, select, unflatten

TREE = {"shared": {"word": 1, "blocks": {"up": 2, "down": 3}}}


def test_flatten_and_back():
    flat = flatten(TREE)
    assert flat == {"shared/word": 1, "shared/blocks/up": 2, "shared/blocks/down": 3}
    assert unflatten(flat) == TREE
    assert sorted(leaf_paths(TREE)) == sorted(flat)


def test_select_and_join():
    chosen = select(TREE, lambda path: "up" in path)
    assert chosen == {"shared": {"blocks": {"up": 2}}}
    assert join_trees(chosen, select(TREE, lambda path: "up" not in path)) == TREE
