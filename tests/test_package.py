"""The package as a whole: public names, errors, layers, what an import does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from networks import images, tiny

import leenet_fx
import placement

PACKAGE = Path(leenet_fx.__file__).parent
SOURCES = [*PACKAGE.rglob("*.py"), *Path(placement.__file__).parent.rglob("*.py")]


def printed_by(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_every_public_name_loads_and_is_documented():
    for name in leenet_fx.__all__:
        assert getattr(leenet_fx, name).__doc__, name


def test_the_public_names_are_those_of_the_stub():
    stub = (PACKAGE / "__init__.pyi").read_text()
    assert sorted(re.findall(r" as (\w+)$", stub, re.MULTILINE)) == sorted(leenet_fx.__all__)
    assert len(leenet_fx.__all__) <= 50


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(leenet_fx, "no_such_name")


def test_placement_imports_without_torch():
    code = "import placement, sys; print('torch' in sys.modules, 'leenet_fx' in sys.modules)"
    assert printed_by(code) == "False False"


def test_importing_the_package_does_not_import_torch():
    code = "import leenet_fx, sys; dir(leenet_fx); print('torch' in sys.modules)"
    assert printed_by(code) == "False"


def test_importing_everything_registers_no_pickler():
    code = (
        "import torch\n"
        "from multiprocessing.reduction import ForkingPickler\n"
        "before = dict(ForkingPickler._extra_reducers)\n"
        "import leenet_fx\n"
        "[getattr(leenet_fx, name) for name in leenet_fx.__all__]\n"
        "print(ForkingPickler._extra_reducers == before)"
    )
    assert printed_by(code) == "True"


@pytest.mark.parametrize(
    ("strategy", "error"),
    [
        ("fien", leenet_fx.UnknownNameError),
        (["blocks.9"], leenet_fx.UnknownNameError),
        ([0, 0], leenet_fx.PlacementError),
        ([0.99999], leenet_fx.PlacementError),
    ],
)
def test_errors_of_placement_are_errors_of_the_package(strategy, error):
    with pytest.raises(error) as raised:
        leenet_fx.attach(tiny(), strategy, example_inputs=images(1, 3, 16, 16))
    assert isinstance(raised.value, leenet_fx.EarlyExitError)


def test_errors_of_placement_stand_by_themselves():
    with pytest.raises(placement.UnknownNameError, match="Did you mean 'fine'"):
        placement.get_strategy("fien")
    assert issubclass(leenet_fx.PlacementError, placement.PlacementError)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_module_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400
