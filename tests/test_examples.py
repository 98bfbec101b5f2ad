"""Each example runs alone."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_quickstart():
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--views", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "3 exits, 'linear' placement" in result.stdout
    assert "1988 images" not in result.stdout
    assert "497 images: accuracy" in result.stdout
