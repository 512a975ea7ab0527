"""The command data_pipeline.beam_build and its error messages."""

import pytest

pytest.importorskip("apache_beam", reason="Apache Beam is an extra: pip install -e '.[beam]'")

from data_pipeline import beam_build
from tests.data_pipeline.beam_corpus import write_corpus


def test_main(tmp_path, capsys):
    source = write_corpus(tmp_path / "corpus")
    beam_build.main(
        ["--source=factory", f"--path_train={source}", f"--data_dir={tmp_path}", "--dev_fraction=0"]
    )
    assert f"wrote {tmp_path}/inf_ir/factory/1.0.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--source=factory", "--data_dir=gs://bucket/data"],
            "--data-dir=gs://bucket/data: URLs are not supported; give a directory that all",
        ),
        (
            ["--source=factory", "--data_dir=x", "--runner=NoSuchRunner"],
            "--runner=NoSuchRunner: Unexpected pipeline runner",
        ),
    ],
)
def test_main_says_what_is_wrong(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        beam_build.main(flags)
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
