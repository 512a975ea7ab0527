"""The record that a checkpoint keeps of its data."""

import pytest

from inf_jax.checkpoints.resume import ResumeInfo, check_same_data
from inf_jax.core.errors import UserError


def test_resuming_with_other_chunks_is_refused_where_they_are_the_negatives():
    """Block I of the query encoder "attention"; otherwise `groups` is 0."""
    was = ResumeInfo(12, 0, 8, "dataset", 16)
    check_same_data(was, was._replace(step=0), "run")
    with pytest.raises(UserError, match="groups: 16 in the checkpoint, 8 now"):
        check_same_data(was, was._replace(step=0, groups=8), "run")


def test_a_checkpoint_without_an_order_has_the_first_and_no_other_follows_it():
    was = ResumeInfo(step=12, seed=0, batch_size=8, dataset="dataset")
    assert was.order == 1
    with pytest.raises(UserError, match="order: 1 in the checkpoint, 2 now"):
        check_same_data(was, was._replace(step=0, order=2), "run")
