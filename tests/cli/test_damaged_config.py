"""Damaged run.yaml files are errors of ours, for every reader."""

import random

import pytest
from mutations import mutated_bytes

from leenet_fx.cli.config import load_config, read_options
from leenet_fx.cli.saved import options_of_fit
from leenet_fx.errors import EarlyExitError, InputError

TEXT = """model: timm/resnet18
data: digits
weights: net.pth
num_classes: 10
pretrained: false
alpha: 0.5
at: [layer1, 0.5, 3]
option: [recipe=joint]
"""
KNOWN = {line.split(":")[0] for line in TEXT.splitlines()}


def test_damaged_bytes(tmp_path):
    path, generator = tmp_path / "run.yaml", random.Random(8)
    for _ in range(150):
        path.write_bytes(mutated_bytes(TEXT.encode(), generator))
        for reader in (lambda: load_config(path, KNOWN), lambda: read_options(path)):
            try:
                options = reader()
            except EarlyExitError:
                continue
            assert all(isinstance(name, str) for name in options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alpha: 2020-13-45\n", "is not YAML: month must be"),
        ("alpha: 2020-12-24\n", "line 1, 'alpha': expected a value or a list"),
        ("alpha: !!python/object:os.system {}\n", "line 1: could not determine a constructor"),
        ("alpha: {x: 1}\n", "line 1, 'alpha': expected a value or a list"),
        ("at: [a, [b]]\n", "line 1, 'at': expected a value or a list"),
        ("? [a]\n: 3\n", "line 1"),
        ("alpha: 1\nalpha: 2\n", "line 2: 'alpha' has two values"),
        ("yes: 1\n", "line 1: 'yes': expected the name of an option"),
        ("a: &a [1]\nalpha: *b\n", "line 2: found undefined alias"),
        ("alpha: " + "[" * 1000, "is not YAML: maximum recursion"),
        ("- 1\n", "expected 'option: value' lines"),
        ("alpha: \x07\n", "is not YAML"),
    ],
)
def test_what_is_no_list_of_options_is_named(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    for reader in (lambda: load_config(path, KNOWN), lambda: read_options(path)):
        with pytest.raises(InputError, match=message):
            reader()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights: 5\n", "'weights': expected str, found 5"),
        ("data: [a]\n", "'data': expected str"),
        ("pretrained: maybe\n", "'pretrained': expected bool, found 'maybe'"),
        ("num_classes: ten\n", "'num_classes': expected int, found 'ten'"),
    ],
)
def test_options_of_a_fit_of_another_type_are_named(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        options_of_fit(tmp_path)
