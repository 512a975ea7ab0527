"""The command data_pipeline.build: flags and error messages."""

from pathlib import Path

import pytest

from data_pipeline.build import main

TINY = Path(__file__).parents[1] / "data" / "inf_ir_tiny.jsonl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source=inf_ir"], "source 'inf_ir' ships no data; give your file by --path-train=FILE"),
        (["--source=inf_ir", "--path_train=gone.jsonl"], "gone.jsonl does not exist"),
        (
            ["--source=medquad", f"--path_train={TINY}"],
            f"{TINY}:1: no field 'id'; the row has: query_positive, ",
        ),
        (
            ["--source=inf_ir", f"--path_train={TINY}", "--dev_fraction=2"],
            "--dev-fraction=2.0: must be at least 0 and less than 1",
        ),
        (
            ["--source=inf_ir", f"--path_train={TINY}", "--dev_fraction=1e-9"],
            "--dev-fraction=1e-09: holds out none of the queries that source 'inf_ir' has; give a",
        ),
        (["--source=medquad", "--dev-fraction=0.3"], "--dev-fraction=0.3: would have no effect, "),
        (
            ["--source=inf_ir", f"--path_train={TINY}", f"--path_dev={TINY}"],
            "split 'train' of source 'inf_ir' is empty: 8 rows read, dropped: 8 for 'shared_with_",
        ),
    ],
)
def test_main_says_what_is_wrong(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, f"--data_dir={tmp_path}"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not list(tmp_path.glob("inf_ir/*/1.0.0"))


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for text in (
        "--path-train",
        "--dev-fraction",
        "{medquad,inf_ir,factory,fields,beir,",
        "0.02",
        "python -m",
    ):
        assert text in out
