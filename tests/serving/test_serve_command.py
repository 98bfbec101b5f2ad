"""leenet-fx serve: what it opens, and what it refuses before anything is started."""

import inspect
import socket
import sys

import pytest
import torch
from fastapi.testclient import TestClient
from helpers import fails, run
from networks import images, tiny
from serving_helpers import NAMES, network_with_points

import leenet_fx
from leenet_fx.serving import server
from leenet_fx.serving.settings import Settings

FACTORY = f"""import torch
from torch import nn

{inspect.getsource(sys.modules["networks"].Block)}

{inspect.getsource(sys.modules["networks"].TinyNet)}

{inspect.getsource(tiny)}

def other():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("commands")
    (path / "net.py").write_text("from __future__ import annotations\n" + FACTORY)
    leenet_fx.save(network_with_points(), path / "saved")
    (path / "empty").mkdir()
    return path


@pytest.fixture
def started(monkeypatch):
    """The applications that were started, without waiting for requests."""
    apps = []

    def serve_app(app, listening, on_start):
        listening.close()
        apps.append(app)
        on_start()

    monkeypatch.setattr(server, "serve_app", serve_app)
    return apps


def test_a_saved_network_is_served_with_its_backbone(base, started):
    result = run(
        *("serve", f"{base}/saved", "--model", f"{base}/net.py:tiny", "--port", "0"),
        *("--point", "cheap", "--mean", "0.5", "--std", "0.25", "--rate", "0", "--api-key", "k"),
    )
    assert result.exit_code == 0, result.output
    assert "at operating point 'cheap' on http://127.0.0.1:" in result.stderr
    batch = images(4, 3, 16, 16)
    ee = network_with_points()
    ee.use("cheap")
    expected = ee.predict(batch)
    with TestClient(started[0], base_url="http://127.0.0.1") as http:
        assert http.post("/predict").status_code == 401
        http.headers["x-api-key"] = "k"
        for i, image in enumerate(batch):
            found = http.post("/predict", json={"tensor": image.tolist()}).json()
            assert found["point"] == "cheap"
            assert found["exit_index"] == int(expected.exit_index[i])
            assert found["class_name"] == NAMES[int(expected.logits[i].argmax())]
    transform = started[0].state.service.network.transform
    assert transform.mean == (0.5,) * 3
    assert transform.std == (0.25,) * 3


def test_a_model_of_a_library_needs_no_name(tmp_path, started):
    model = leenet_fx.create_model("timm/test_resnet", num_classes=5).eval()
    ee = leenet_fx.attach(
        model, [0.4], example_inputs=torch.zeros(1, 3, 64, 64), name="timm/test_resnet"
    )
    ee.policy = leenet_fx.MaxProbability(0.2)
    leenet_fx.save(ee, tmp_path / "saved", backbone=True)
    result = run("serve", f"{tmp_path}/saved", "--port", "0")
    assert result.exit_code == 0, result.output
    batch = images(2, 3, 64, 64)
    expected = ee.eval().predict(batch)
    with TestClient(started[0], base_url="http://127.0.0.1") as http:
        for i, image in enumerate(batch):
            found = http.post("/predict", json={"tensor": image.tolist()}).json()
            assert found["probability"] == pytest.approx(float(expected.confidence[i]), abs=1e-5)
            assert found["exit_index"] == int(expected.exit_index[i])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{base}/missing",), 1, "is no network that leenet_fx.save or leenet_fx.export wrote"),
        (("{base}/empty",), 1, "is no network that leenet_fx.save or leenet_fx.export wrote"),
        (("{base}/saved",), 1, "not a model of timm or torchvision"),
        (("{base}/saved", "--model", "{base}/net.py:other"), 1, "cannot be attached"),
        (("{base}/saved", "--model", "{base}/net.py:tiny", "--point", "cheep"), 2, "'cheap'"),
        (("{base}/saved", "--weights", "{base}/net.py"), 2, "--weights needs --model"),
        (("{base}/empty", "--model", "resnet18"), 2, "are for a saved network"),
        (("{base}/saved", "--host", "no.such.host.invalid"), 1, "is no address of this machine"),
        (("{base}/saved", "--mean", "x"), 1, "--mean must be like"),
        (("{base}/saved", "--api-key", ""), 1, "api-key must be text"),
        (("{base}/saved", "--replicas", "2"), 2, "need --ray"),
        (("{base}/saved", "--ray-address", "auto"), 2, "need --ray"),
    ],
)
def test_bad_input_is_one_clear_error(base, started, capsys, monkeypatch, arguments, code, message):
    given = [argument.format(base=base) for argument in arguments]
    found, text = fails(capsys, monkeypatch, "serve", *given, "--port", "0")
    assert found == code, text
    assert message in text
    assert "Traceback" not in text
    assert not started


def test_a_port_in_use_is_found_first(base, started, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, text = fails(capsys, monkeypatch, "serve", f"{base}/missing", "--port", port)
    assert code == 1
    assert f"Port {port} of 127.0.0.1 is in use" in text
    assert not started


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_a_missing_library_names_the_extra(base, started, capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    code, text = fails(capsys, monkeypatch, "serve", f"{base}/saved")
    assert code == 1
    assert f"needs {name.replace('_', '-')}: pip install 'leenet-fx[serve]'" in text
    assert not started


@pytest.mark.parametrize("name", ["ray", "ray.serve"])
def test_a_missing_ray_names_the_extra(base, started, capsys, monkeypatch, name):
    # Other tests of this process may have imported it.
    monkeypatch.delitem(sys.modules, "ray.serve", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    code, text = fails(capsys, monkeypatch, "serve", f"{base}/saved", "--ray")
    assert code == 1
    assert "needs ray: pip install 'leenet-fx[serve]'" in text
    assert not started


def test_defaults_of_the_command_are_those_of_the_settings():
    from leenet_fx.cli.serve import serve as command

    given = inspect.signature(command).parameters
    settings = Settings()
    for name in ("host", "port", "batch_size", "queue", "max_bytes", "max_pixels", "rate"):
        assert given[name].default == getattr(settings, name), name
    assert given["max_delay"].default == pytest.approx(1000 * settings.max_delay)
