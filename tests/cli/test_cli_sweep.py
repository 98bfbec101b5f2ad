"""Values of α on the command line."""

import pytest

from leenet_fx.cli.sweep import parse_alphas
from leenet_fx.errors import InputError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0:1:0.05", [round(0.05 * k, 2) for k in range(21)]),
        ("0.2,0.4", [0.2, 0.4]),
        ("0.5", [0.5]),
    ],
)
def test_ranges_and_lists_of_alphas(text, values):
    assert parse_alphas(text) == values


@pytest.mark.parametrize("text", ["", "a", "1:0:0.1", "0:1:0", "0:1", "-0.1", "0,2"])
def test_texts_that_are_no_alphas(text):
    with pytest.raises(InputError):
        parse_alphas(text)
