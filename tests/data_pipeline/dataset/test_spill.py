"""Records come back by key, those of one key in order, also if they did not fit into memory."""

import hashlib
import os

import pytest

from data_pipeline.dataset.spill import Spill
from inf_jax.core.errors import UserError


@pytest.mark.parametrize("limit", [1, 2000, 1 << 30])
def test_a_spill_sorts(tmp_path, limit):
    spill, rows = Spill(tmp_path, limit=limit), []
    for n in range(200):
        rows.append((hashlib.md5(str(n % 70).encode()).digest(), f"{n} ".encode() * (n % 5)))
        spill.add(*rows[-1])
    assert spill.count == 200
    assert spill.size == sum(len(data) for _, data in rows)
    assert bool(any(files for _, _, files in os.walk(tmp_path))) == (limit < 1 << 30)
    assert list(spill) == sorted(rows, key=lambda row: row[0])
    assert not os.listdir(tmp_path)


def test_a_spill_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot sort records in .*file: Not a directory; free"):
        Spill(tmp_path / "file", limit=1).add(bytes(16), b"x")
