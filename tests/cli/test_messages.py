"""Messages of the library in the terms of the command line."""

import logging

import pytest

from leenet_fx.cli.app import app
from leenet_fx.cli.messages import OptionFormatter, as_options, option_names

NAMES = option_names(app)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("pass resume=True, or choose another", "pass --resume, or choose another"),
        ("made with num_exits=3, lr=None here", "made with --num-exits 3, --lr None here"),
        ("No exit is certified for max_drop=0.01.", "No exit is certified for --max-drop 1."),
        ("exactly one of max_drop and budget.", "exactly one of --max-drop and budget."),
        ("seed must be from 0", "--seed must be from 0"),
        ("model='a' is unknown", "--model 'a' is unknown"),
        ("'/runs/max_drop=1/x' exists", "'/runs/max_drop=1/x' exists"),
        ("the data of a model", "the data of a model"),
        ("--max-drop must be a percentage", "--max-drop must be a percentage"),
        ("check my_batch_size=3 and batch_size_2", "check my_batch_size=3 and batch_size_2"),
    ],
)
def test_keywords_become_options(message, expected):
    assert as_options(message, NAMES) == expected


def test_warnings_are_written_with_options_too():
    record = logging.LogRecord("x", logging.WARNING, "", 0, "use max_drop=%s", (0.1,), None)
    formatter = OptionFormatter("%(levelname)s: %(message)s", NAMES)
    assert formatter.format(record) == "WARNING: use --max-drop 10"
