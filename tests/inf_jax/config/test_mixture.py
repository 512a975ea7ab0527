"""The notation of mixtures."""

from fractions import Fraction

import pytest

from inf_jax.config.command_line import parse
from inf_jax.config.mixture import mixture_sources, temperature_weights, whole_weights
from inf_jax.core.errors import UserError


def test_the_notation():
    assert mixture_sources(" ") == ()
    found = mixture_sources("medquad:2, pubmedqa@1.1.0 : 1/3,ne-vir")
    assert found == (
        ("medquad", "", 2),
        ("pubmedqa", "1.1.0", Fraction(1, 3)),
        ("ne-vir", "", None),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a:b:c", "'a:b:c' is not of the form NAME, NAME:WEIGHT"),
        ("a,,b", "'' is not of the form"),
        ("a:2,a:1", "a is named twice"),
        ("a:0", "weight 0 must be above 0"),
        ("a:-1", "weight -1 must be above 0"),
        ("a:nan", "weight 'nan' is not a number"),
        ("a:1e99999999", "weight 1e99999999 has too many digits"),
        (f"a:1/{'3' * 50}", "3 has too many digits; round it"),
        ("a@..", "'a@..' is not of the form"),
        ("a:1/0", "weight '1/0' is not a number"),
        ("a:0.333333,b:0.666667", "333333:666667, whose sum is above 100,000; round them"),
        ("a,IQ", "IQ: metrics by source would be named like"),
    ],
)
def test_what_is_no_mixture_is_refused(text, problem):
    with pytest.raises(UserError) as error:
        mixture_sources(text)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    "flag", ["source=", "source=../nq", "source=/nq", "source=a b", "version=", "version=../1.0.0"]
)
def test_names_that_are_none_are_refused(flag):
    key = flag.partition("=")[0]
    with pytest.raises(UserError, match=rf"data\.{key}='.*': give one that a directory below"):
        parse(["main", "--config=medquad_minilm", f"--config.data.{flag}"])


def test_weights_are_exact():
    assert whole_weights([Fraction("2"), Fraction("1"), Fraction("0.5")]) == (4, 2, 1)
    assert whole_weights([Fraction("0.1"), Fraction("0.2"), Fraction("0.7")]) == (1, 2, 7)


def test_a_temperature_flattens_the_sizes():
    sizes = [100, 10_000]
    assert temperature_weights(sizes, 1) == (99, 9901)
    assert temperature_weights(sizes, 2) == (909, 9091)  # 1 to 10
    assert temperature_weights(sizes, 1e9) == (1, 1)
    assert temperature_weights([1, 10**9], 1) == (1, 10_000)  # no source is lost
