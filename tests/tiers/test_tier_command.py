"""leenet-fx tier: two processes on images of a fit, and what is refused before anything runs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from helpers import fails, folder, run

FACTORY = """
import torch
from torch import nn
def small():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    model.pretrained_cfg = {"input_size": (3, 16, 16)}
    return model
"""
# As in a terminal, also where the tests run in the background, where Ctrl-C is ignored.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from leenet_fx.cli.app import main
main()
"""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    base = tmp_path_factory.mktemp("tier")
    folder(base / "images", 40)
    (base / "net.py").write_text(FACTORY)
    result = run(
        *("fit", f"{base}/net.py:small", "--out", f"{base}/run", "--data", f"{base}/images"),
        *("--strategy", "linear", "--num-exits", "2", "--epochs", "2", "--method", "leenet"),
        *("--alpha", "0.3"),
    )
    assert result.exit_code == 0, result.output
    return [str(base / "run"), "--model", f"{base}/net.py:small"]


@pytest.fixture(scope="module")
def cloud(fitted):
    """The last tier, started as the docs say, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "tier", *fitted, "--stages", "1:3", "--listen", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    line = next(line for line in process.stderr if "answer at" in line)
    yield process, line.partition("answer at ")[2].split()[0].rstrip(".")
    process.kill()
    process.wait()
    process.stderr.close()


def test_the_first_tier_prints_exits_tiers_and_bytes(fitted, cloud):
    process, address = cloud
    whole = json.loads(run("evaluate", *fitted, "--json").stdout)
    first = ("tier", *fitted, "--stages", "0:1", "--next", address)
    result = run(*first, "--batch-size", "8", "--bandwidth", "100", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["samples"] == whole["samples"]
    assert found["accuracy"] == pytest.approx(whole["accuracy"])
    shares = [row["share"] for row in found["exits"]]
    assert shares == pytest.approx([row["share"] for row in whole["exits"]])
    assert [row["stages"] for row in found["tiers"]] == [[0, 1], [1, 3]]
    assert found["tiers"][0]["share"] == pytest.approx(shares[0])
    assert found["fallback"] == 0
    assert len(found["sent_bytes"]) == (1 if shares[0] < 1 else 0)
    table = run(*first, "--dtype", "uint8", "--limit", "3")
    assert table.exit_code == 0, table.output
    assert "3 images" in table.stdout
    assert "tier 1 (stages 1:3)" in table.stdout
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert "The tier has stopped." in process.stderr.read()
    gone = run(*first)
    assert gone.exit_code == 1
    assert "start the last tier first" in str(gone.exception)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["--stages", "0:1", "--next", "7000", "--bandwidth", "0"],
            1,
            "bandwidth .* above 0, got 0.0",
        ),
        (["--stages", "0:1", "--next", "7000", "--timeout", "0"], 1, "above 0, got 0.0"),
        (["--stages", "0:1", "--next", "x"], 1, "Expected an address such as"),
        (["--stages", "0:1", "--next", "7000", "--dtype", "int8"], 2, "uint8"),
        (["--stages", "0-1", "--next", "7000"], 1, "Expected stages such as 0:2"),
        (["--stages", "0:1"], 1, "0:1 of 3 has no next tier"),
        (["--stages", "0:9"], 1, "stages 0 to 2"),
        (["--stages", "1:3"], 2, "needs --listen"),
        (["--stages", "1:3", "--listen", "0", "--bandwidth", "3"], 2, "is of the link to --next"),
        (["--stages", "0:3", "--point", "none"], 2, "none"),
    ],
)
def test_wrong_options_end_with_one_line(fitted, capsys, monkeypatch, options, code, message):
    found, printed = fails(capsys, monkeypatch, "tier", *fitted, *options)
    assert found == code
    assert "Traceback" not in printed
    assert re.search(message, " ".join(printed.replace("│", " ").split()))


def test_a_port_in_use_is_found_before_the_network_is_read(tmp_path, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = str(used.getsockname()[1])
        code, printed = fails(
            capsys, monkeypatch, "tier", str(tmp_path), "--stages", "1:3", "--listen", port
        )
    assert code == 1
    assert f"Port {port} of 127.0.0.1 is in use" in printed
