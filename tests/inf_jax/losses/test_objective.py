"""The notation of objectives, and what it counts."""

import subprocess
import sys

import pytest

from inf_jax.core.errors import UserError
from inf_jax.losses.objective import Objective, Term, count_negatives, parse_objective


def one(kind, *blocks, **options):
    return Objective((Term(kind, blocks, **options),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("uni(P)", one("uni", "P")),
        ("multi(P,IQ)", one("multi", "P", "IQ")),
        (" multi( IQ , P ) ", one("multi", "P", "IQ")),
        ("uni(PP,QQ,IQ,I,P)", one("uni", "P", "I", "IQ", "QQ", "PP")),
        ("sigmoid(P)", one("sigmoid", "P")),
        ("0.5*multi(2*IQ, P)", one("multi", "P", "IQ", weights=(1.0, 2.0), weight=0.5)),
        (
            "uni(P) + 1e-1 * distil(P)",
            Objective((Term("uni", ("P",)), Term("distil", ("P",), weight=0.1))),
        ),
    ],
)
def test_parse(text, expected):
    parsed = parse_objective(text)
    assert parsed == expected and hash(parsed) == hash(expected)
    assert parse_objective(str(parsed)) == parsed
    assert parse_objective(parsed) is parsed


def test_str_is_the_notation_of_the_paper_tables():
    assert str(parse_objective("uni(PP,QQ,IQ,I,P)")) == "uni(P,I,IQ,QQ,PP)"
    assert str(parse_objective("2*multi(IQ,.25*P)+sigmoid(PP)")) == (
        "2*multi(0.25*P,IQ) + sigmoid(PP)"
    )


def test_blocks_are_those_with_negatives():
    assert parse_objective("uni(IQ) + sigmoid(P,IQ) + distil(P)").blocks == ("P", "IQ")
    assert parse_objective("distil(P)").blocks == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("P", "not of the form"),
        ("uni(P", "not of the form"),
        ("uni(P)multi(P)", "not of the form"),
        ("uni(P)+", "not of the form"),
        ("x*uni(P)", "not of the form"),
        (None, "not of the form"),
        ("sum(P)", "kind 'sum'; choose one of uni, multi, sigmoid, distil"),
        ("uni()", "no block"),
        ("uni(P,)", "unknown block ''"),
        ("uni(P,X)", "unknown block 'X'; choose from P, I, IQ, QQ, PP"),
        ("uni(p)", "unknown block 'p'"),
        ("uni(P,P)", "named twice"),
        ("uni(0*P)", "must be above 0"),
        ("uni(-1*P)", "written like P or 0.5"),
        ("0*uni(P)", "must be above 0"),
        ("distil(IQ)", "write distil"),
    ],
)
def test_parse_errors(text, message):
    with pytest.raises(UserError, match=message):
        parse_objective(text)


def test_count_negatives():
    counted = count_negatives(
        "multi(P,I,IQ)", pairs=1024, hard_negatives=3, instruction_negatives=4
    )
    assert counted == {"P": 1023 + 3 * 1024, "I": 4, "IQ": 1023}
    with pytest.raises(UserError, match="instruction_negatives to 1"):
        count_negatives("uni(I)", pairs=4)
    with pytest.raises(UserError, match="pairs=0"):
        count_negatives("uni(P)", pairs=0)


def test_the_notation_is_parsed_without_jax():
    code = (
        "import sys\n"
        "from inf_jax.losses.objective import ENGINES, MASKS, parse_objective\n"
        "parse_objective('multi(P,IQ)')\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
