"""The package as a whole: its public names and its floors."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import leenet_fx

PACKAGE = Path(leenet_fx.__file__).parent


def test_every_public_name_loads_and_is_documented():
    for name in leenet_fx.__all__:
        assert getattr(leenet_fx, name) is not None
        if name != "__version__":
            assert getattr(leenet_fx, name).__doc__ or name.startswith(
                ("get_", "list_", "register_")
            )


def test_the_stub_names_what_the_package_loads():
    stub = (PACKAGE / "__init__.pyi").read_text()
    assert set(re.findall(r"(\w+) as \1", stub)) == set(leenet_fx.__all__) - {"__version__"}


def test_placement_imports_without_torch():
    code = "import placement, sys; print('torch' in sys.modules, 'leenet_fx' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False False"


def test_an_unknown_name_is_an_attribute_error():
    assert importlib.import_module("leenet_fx") is leenet_fx
    assert not hasattr(leenet_fx, "no_such_name")
