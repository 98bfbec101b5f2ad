"""Model cards, and the hub: against a local server that speaks its protocol."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from helpers import attached
from networks import images
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError, MaxProbability, StorageError
from leenet_fx.storage.model_card import MARK

X = images(60, 3, 16, 16)


class Hub(BaseHTTPRequestHandler):
    """Repositories with one commit, as JSON over HTTP."""

    repositories: dict[str, dict[str, bytes]]
    asked: list[str]

    def log_message(self, *args):
        pass

    def answer(self, content, status=200, headers=(), body=True):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def read(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        content = self.read()
        if self.path == "/api/repos/create":
            values = json.loads(content)
            name = "/".join(filter(None, [values.get("organization"), values["name"]]))
            self.repositories.setdefault(name, {})
            self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path.split("?")[0]):
            files = json.loads(content)["files"]
            self.answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in files
                    ]
                }
            )
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path.split("?")[0]):
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    files = self.repositories[match[1]]
                    files[value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['Host']}/{match[1]}/commit/{'a' * 40}"
            self.answer({"commitUrl": url, "commitOid": "a" * 40, "success": True})
        else:
            self.answer({"valid": True})

    def do_GET(self, body=True):
        path = self.path.split("?")[0]
        self.asked.append(path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            files = self.repositories.get(match[1])
            if files is None:
                error = {"X-Error-Code": "RepoNotFound"}
                self.answer({"error": "not found"}, 404, error, body)
                return
            listed = [{"rfilename": name} for name in files]
            self.answer({"id": match[1], "sha": "a" * 40, "siblings": listed}, body=body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = self.repositories[match[1]]
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            self.answer(listed, body=body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            data = self.repositories[match[1]].get(match[2])
            if data is None:
                self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"}, body)
                return
            found = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "a" * 40}
            self.answer(data, headers=found, body=body)
        else:
            self.answer({"error": "unknown"}, 404, body=body)

    def do_HEAD(self):
        self.do_GET(body=False)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    handler = type("LocalHub", (Hub,), {"repositories": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def network():
    ee = attached().eval()
    ee.policy = MaxProbability(0.3)
    labels = torch.arange(60) % ee.spec.num_classes
    loader = DataLoader(TensorDataset(X, labels), batch_size=60)
    leenet_fx.calibrate(ee, loader, budget=0.9, name="a|b `c`\nd")
    leenet_fx.calibrate(ee, loader, max_disagreement=0.9, name="safe")
    return ee


def test_a_network_is_pushed_and_loaded(hub, network):
    url = leenet_fx.push_to_hub(network, "someone/small-net", license="mit", token="t")
    assert url.endswith("someone/small-net/commit/" + "a" * 40)
    files = hub.repositories["someone/small-net"]
    assert {"exits.safetensors", "exit_config.json", "README.md"} <= set(files)
    assert 'leenet_fx.load("hf:someone/small-net", model)' in files["README.md"].decode()
    # Nothing else of the repository is read.
    files["payload.py"] = b"raise SystemExit"
    for place in ("hf:someone/small-net", "hf:someone/small-net@main"):
        loaded = leenet_fx.load(place, attached())
        assert loaded.operating_points == network.operating_points
        assert torch.equal(loaded.predict(X).logits, network.predict(X).logits)
    assert not any(path.endswith("payload.py") for path in hub.asked)


def test_what_the_hub_refuses_is_one_error(hub, monkeypatch):
    with pytest.raises(StorageError, match="'hf:someone/missing' cannot be downloaded"):
        leenet_fx.load("hf:someone/missing", attached())
    hub.repositories["someone/other"] = {"config.json": b"{}"}
    with pytest.raises(StorageError, match="exit_config"):
        leenet_fx.load("hf:someone/other", attached())
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be uploaded"):
        leenet_fx.push_to_hub(attached(), "someone/net", token="t")


@pytest.mark.parametrize("name", ["net", "a/b/c", "", "a/b@", "../b", "https://hub/a/b"])
def test_names_that_are_no_repository(name):
    with pytest.raises(InputError, match="Expected 'owner/name'"):
        leenet_fx.load(f"hf:{name}")
    with pytest.raises(InputError, match="Expected 'owner/name'"):
        leenet_fx.push_to_hub(attached(), name)
    with pytest.raises(InputError, match="without a revision"):
        leenet_fx.push_to_hub(attached(), "a/b@main")


def test_the_card_tells_results_licence_and_how_to_load(network, tmp_path):
    leenet_fx.save(network, tmp_path, license="bsd-3-clause")
    text = (tmp_path / "README.md").read_text()
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    described = yaml.safe_load(head)
    assert described["license"] == "bsd-3-clause"
    assert described["library_name"] == "leenet-fx"
    assert "image-classification" in described["tags"]
    tables = [line for line in body.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in tables if "accuracy" not in line}
    # Each table has rows of one width, whatever the names are.
    assert len(widths) == 2
    assert any("a\\|b 'c' d" in line for line in tables)
    point = network.operating_points["safe"]
    assert any(f"{100 * point.cost.estimate:.2f}" in line for line in tables)
    relative = network.costs[0].relative_flops
    assert any(f"{100 * relative:.1f}" in line for line in tables)
    assert 'leenet_fx.load("FOLDER", model)' in body
    compile(body.split("```python\n")[1].split("```")[0].replace("...", "None"), "card", "exec")


def test_a_card_written_by_hand_is_kept(network, tmp_path):
    card = tmp_path / "README.md"
    leenet_fx.save(network, tmp_path)
    assert MARK in card.read_text()
    card.write_text("My own words.")
    leenet_fx.save(network, tmp_path, overwrite=True)
    assert card.read_text() == "My own words."


def test_licence_and_base_model_of_timm_are_told(tmp_path):
    model = leenet_fx.create_model("timm/resnet18.a1_in1k", pretrained=False).eval()
    ee = leenet_fx.attach(model, ["layer2.1"], example_inputs=torch.zeros(1, 3, 32, 32))
    leenet_fx.save(ee, tmp_path, backbone=True)
    text = (tmp_path / "README.md").read_text()
    described = yaml.safe_load(text.split("---")[1])
    assert described["license"] == "apache-2.0"
    assert described["base_model"] == "timm/resnet18.a1_in1k"
    assert 'leenet_fx.load("FOLDER")' in text
    assert "thresholds were not calibrated" in text
