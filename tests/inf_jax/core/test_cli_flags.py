"""The spelling of flags that every command takes; `tests/test_command_lines.py` has the errors."""

from pathlib import Path

import pytest

from inf_jax.core.cli_flags import FlagParser, at_least, names_among, nearest_name
from inf_jax.core.errors import UsageError


@pytest.fixture
def parser():
    made = FlagParser("What it does.")
    made.add("files", "to read", many=True)
    made.add("--data-dir", "where", of=Path, default=Path("x"))
    made.add("--max-count", "how many", of=at_least(1))
    made.add("--parts", "which", of=names_among(("a_b", "c")), default=[])
    made.add_boolean("--dry-run", "only look")
    made.add_boolean("--resume", "go on", default=None)
    return made


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        ([], {}),
        (["--data_dir=a_b", "c_d"], {"data_dir": Path("a_b"), "files": ["c_d"]}),
        (["c", "--data-dir", "a b"], {"data_dir": Path("a b"), "files": ["c"]}),
        (["--max_count=3", "--max-count=4"], {"max_count": 4}),
        (["--parts=a_b, c"], {"parts": ["a_b", "c"]}),
        (["--dry_run"], {"dry_run": True}),
        (["--dry-run=False"], {"dry_run": False}),
        (["--dry-run", "--nodry-run"], {"dry_run": False}),
        (["--no-dry-run", "--dry_run=true"], {"dry_run": True}),
        (["--noresume"], {"resume": False}),
        (["--no-resume"], {"resume": False}),
        (["--no_resume", "x"], {"resume": False, "files": ["x"]}),
        (["--resume", "x"], {"resume": True, "files": ["x"]}),
        (["--", "--dry-run"], {"files": ["--dry-run"]}),
    ],
)
def test_spellings(parser, argv, changed):
    values = {"files": [], "data_dir": Path("x"), "max_count": None, "parts": []}
    values |= {"dry_run": False, "resume": None}
    assert vars(parser.parse(argv)) == values | changed


def test_unknown_flags_keep_their_spelling_and_their_values(parser):
    flags = ["--num_workers", "3", "--mode=a_b", "--config.data.train_split=a b"]
    args, rest = parser.parse_known(["one", *flags, "two", "--data_dir=d"], lambda flag: None)
    assert rest == flags
    assert args.files == ["one", "two"] and args.data_dir == Path("d")


def test_a_number_below_zero_is_no_flag(parser):
    with pytest.raises(UsageError, match=r"^--max-count: must be at least 1, not -3$"):
        parser.parse(["--max-count", "-3"])


def test_nearest_name():
    keys = ["--config.train.steps", "--config.out_dir", "--source"]
    assert nearest_name("--out-dir", keys) == nearest_name("--config.outdir", keys) == keys[1]
    assert nearest_name("--train.step", keys) == keys[0]
    assert nearest_name("--sorce", keys) == "--source"
    assert nearest_name("--nothing", keys) == ""
