"""The HTTP server: answers, limits, operating points, metrics."""

import asyncio
import io
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from networks import images, tiny
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import save as to_safetensors
from serving_helpers import NAMES, TRANSFORM, client, encoded, network_with_points, picture

import leenet_fx
from leenet_fx.data.transforms import build_transform
from leenet_fx.errors import InputError, StorageError, UnknownNameError
from leenet_fx.serving import Settings, open_network
from leenet_fx.serving.access import RateLimiter
from leenet_fx.serving.app import create_app
from leenet_fx.serving.predictor import OverloadedError, Predictor
from leenet_fx.serving.server import address_of, listen, serve_app
from leenet_fx.storage.transform_file import write_transform


@pytest.fixture(scope="module")
def ee():
    return network_with_points()


@pytest.fixture(scope="module")
def folder(ee, tmp_path_factory):
    """The network, saved and exported."""
    path = tmp_path_factory.mktemp("served")
    leenet_fx.save(ee, path / "saved")
    write_transform(path / "saved", TRANSFORM)
    for name in ("onnx", "onnx-stages"):
        leenet_fx.export(ee, path / name, name, preprocessing=TRANSFORM)
    return path


KINDS = ("saved", "onnx", "onnx-stages")


@pytest.fixture(scope="module")
def networks(folder):
    """The network as a server opens it, by the kind of its files."""
    return {
        kind: open_network(folder / kind, tiny() if kind == "saved" else None, threads=1)
        for kind in KINDS
    }


@pytest.fixture(params=KINDS)
def network(request, networks):
    return networks[request.param]


@pytest.fixture
def saved(networks):
    return networks["saved"]


@pytest.fixture(scope="module")
def served(networks):
    with client(networks["saved"], max_bytes=200_000, max_pixels=250_000) as found:
        yield found


def values(text, name):
    """The samples of a metric: labels → value."""
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def check(found, expected, i, point, costs):
    label = int(expected.logits[i].argmax())
    exit_index = int(expected.exit_index[i])
    assert found["class_index"] == label
    assert found["class_name"] == NAMES[label]
    assert found["exit_index"] == exit_index
    assert found["probability"] == pytest.approx(float(expected.confidence[i]), abs=1e-5)
    assert found["cost"] == pytest.approx(costs[exit_index])
    assert found["point"] == point
    assert found["exit_name"] == ("blocks.0", "blocks.2", "final classifier")[exit_index]


def test_tensors_get_the_answers_of_predict(ee, network):
    batch = images(24, 3, 16, 16)
    expected, costs = ee.predict(batch), ee.costs_for(ee.policy, enabled=True).relative("flops")
    with client(network) as http, ThreadPoolExecutor(8) as pool:

        def send(i):
            if i % 2:
                return http.post("/predict", json={"tensor": batch[i].tolist()})
            body = to_safetensors({"images": batch[i : i + 1].contiguous()})
            headers = {"content-type": "application/vnd.safetensors"}
            return http.post("/predict", content=body, headers=headers)

        for i, response in enumerate(pool.map(send, range(24))):
            assert response.status_code == 200, response.text
            check(response.json(), expected, i, "saved", costs)
    assert set(expected.exit_index.tolist()) == {0, 1, 2}


def test_images_are_transformed_as_for_the_fit(ee, network):
    transform = build_transform(TRANSFORM)
    costs = ee.costs_for(ee.policy, enabled=True).relative("flops")
    with client(network) as http:
        for seed, (kind, media) in enumerate([("PNG", "image/png"), ("JPEG", "image/jpeg")] * 2):
            content = encoded(picture(seed), kind)
            expected = ee.predict(transform(Image.open(io.BytesIO(content)))[None])
            if seed < 2:
                headers = {"content-type": media}
                response = http.post("/predict", content=content, headers=headers)
            else:
                response = http.post("/predict", files={"image": ("a", content, media)})
            assert response.status_code == 200, response.text
            check(response.json(), expected, 0, "saved", costs)


@pytest.mark.parametrize("name", ["cheap", "whole"])
def test_the_point_is_chosen_by_request_and_by_an_operator(ee, network, name):
    batch = images(6, 3, 16, 16, seed=1)
    policy = ee.operating_points[name].build_policy()
    exits = ee.run_with(batch, policy)[1].tolist()
    own = ee.predict(batch).exit_index.tolist()
    with client(network) as http:

        def found(query=""):
            answers = [
                http.post(f"/predict{query}", json={"tensor": x.tolist()}).json() for x in batch
            ]
            assert len({answer["point"] for answer in answers}) == 1
            return answers[0]["point"], [answer["exit_index"] for answer in answers]

        assert found() == ("saved", own)
        assert found(f"?point={name}") == (name, exits)
        assert http.post("/admin/point", json={"point": name}).json()["point"] == name
        assert found() == (name, exits)
        response = http.post("/admin/point", json={"point": "cheep"})
        assert response.status_code == 422
        assert "Did you mean 'cheap'" in response.json()["detail"]
        assert http.post("/predict?point=cheep").status_code == 422
        assert found() == (name, exits)


def test_an_explanation_has_the_probabilities_at_each_exit_passed(ee, network):
    batch = images(8, 3, 16, 16, seed=2)
    with torch.inference_mode():
        logits = ee.all_exits(batch).logits
    expected = ee.predict(batch).exit_index.tolist()
    with client(network) as http:
        for i, exit_index in enumerate(expected):
            found = http.post("/explain", json={"tensor": batch[i].tolist()}).json()
            assert found["prediction"]["exit_index"] == exit_index
            assert [e["exit_index"] for e in found["exits"]] == list(range(exit_index + 1))
            assert [e["exited"] for e in found["exits"]] == [False] * exit_index + [True]
            for index, at in enumerate(found["exits"]):
                probabilities = logits[index][i].softmax(0)
                order = probabilities.argsort(descending=True).tolist()
                assert [c["class_index"] for c in at["classes"]] == order
                given = [c["probability"] for c in at["classes"]]
                assert given == pytest.approx(probabilities[order].tolist(), abs=1e-5)
    assert len(set(expected)) > 1


def test_a_point_without_early_exits(ee, folder, tmp_path):
    never = network_with_points()
    never.policy = leenet_fx.NeverExit()
    leenet_fx.save(never, tmp_path / "never")
    batch = images(2, 3, 16, 16)
    with client(open_network(tmp_path / "never", tiny())) as http:
        found = http.post("/explain", json={"tensor": batch[0].tolist()}).json()
    assert found["prediction"]["exit_index"] == 2
    assert found["prediction"]["cost"] == 1
    assert [e["used"] for e in found["exits"]] == [False, False, True]


def chunk(kind, content):
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def bomb(side):
    """A PNG of a few kilobytes with side² pixels, of which only the header is read."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000)
    parts = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


TENSOR = {"content-type": "application/vnd.safetensors"}
PNG = {"content-type": "image/png"}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("content", "headers", "status", "message"),
    [
        (b"x" * 200_001, PNG, 413, "larger than 200000 bytes"),
        (bomb(600), PNG, 413, "360000 pixels; at most 250000"),
        (bomb(100_000), PNG, 413, "pixels"),
        (b"not an image", PNG, 422, "no image"),
        (b"", PNG, 422, "no image"),
        (encoded(picture())[:-40], PNG, 422, "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", PNG, 422, "no image"),
        (encoded(Image.new("F", (9, 9)), "TIFF"), PNG, 422, "mode 'F'"),
        (b"x", {}, 415, "got no media type"),
        (b"x", {"content-type": "text/html"}, 415, "got text/html"),
        (b"x", {"content-type": "multipart/form-data"}, 400, "form"),
        (b"x", {"content-type": "multipart/form-data; boundary=a"}, 400, "form"),
        (b"{", JSON, 400, "not JSON"),
        (b"\xff", JSON, 400, "not JSON"),
        (b"[" * 100_000, JSON, 400, "not JSON"),
        (b"[]", JSON, 422, "Expected JSON like"),
        (b'{"tensor": [[1], [1, 2]]}', JSON, 422, "different lengths"),
        (b'{"tensor": "a"}', JSON, 422, "numbers only"),
        (b'{"tensor": [true]}', JSON, 422, "numbers only"),
        (b'{"tensor": [[[1.5]]]}', JSON, 422, r"Expected a tensor of shape (3, 16, 16), got (1, 1"),
        (json.dumps({"tensor": [[[1e300] * 16] * 16] * 3}).encode(), JSON, 422, "finite"),
        (b'{"tensor": NaN}', JSON, 422, "Expected a tensor"),
        (b"\x80\x04.", TENSOR, 400, "safetensors"),
        (to_safetensors({"a": torch.zeros(1), "b": torch.zeros(1)}), TENSOR, 422, "got 2"),
        (to_safetensors({"a": torch.zeros(2, 3, 16, 16)}), TENSOR, 422, "got (2, 3, 16, 16)"),
        (to_safetensors({"a": torch.full((3, 16, 16), torch.inf)}), TENSOR, 422, "finite"),
    ],
)
def test_bad_content_is_one_clear_error(served, content, headers, status, message):
    response = served.post("/predict", content=content, headers=headers)
    assert response.status_code == status, response.text
    assert message in response.json()["detail"]
    good = served.post("/predict", content=encoded(picture()), headers=PNG)
    assert good.status_code == 200


def test_forms_have_one_file(served):
    content = encoded(picture())
    two = [("image", ("a", content)), ("image", ("b", content))]
    assert "got 2" in served.post("/predict", files=two).json()["detail"]
    response = served.post("/predict", files={"x": ("", b"")}, data={"a": "b"})
    assert response.status_code in (400, 422)


def test_a_chunked_request_is_limited(saved):
    with client(saved, max_bytes=1000) as http:
        sent = (b"x" * 100 for _ in range(50))
        assert http.post("/predict", content=sent, headers=PNG).status_code == 413


def test_malformed_content_never_ends_the_server(saved):
    generator = np.random.default_rng(0)
    good = [
        (encoded(picture()), "image/png"),
        (encoded(picture(), "JPEG"), "image/jpeg"),
        (encoded(picture(), "GIF"), "image/gif"),
        (encoded(picture(), "TIFF"), "image/tiff"),
        (encoded(picture(), "WEBP"), "image/webp"),
        (to_safetensors({"a": torch.zeros(3, 16, 16)}), "application/vnd.safetensors"),
        (json.dumps({"tensor": [[[0.5] * 16] * 16] * 3}).encode(), "application/json"),
        (
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            + encoded(picture())
            + b"\r\n--b--\r\n",
            "multipart/form-data; boundary=b",
        ),
    ]
    with client(saved) as http:
        for turn in range(200):
            content, kind = good[turn % len(good)]
            damaged = bytearray(content)
            for _ in range(int(generator.integers(1, 20))):
                damaged[generator.integers(len(damaged))] = generator.integers(256)
            if turn % 3 == 0:
                damaged = damaged[: generator.integers(len(damaged))]
            response = http.post("/predict", content=bytes(damaged), headers={"content-type": kind})
            assert response.status_code in (200, 400, 413, 415, 422), (turn, response.text)
        for content, kind in good:
            headers = {"content-type": kind}
            assert http.post("/predict", content=content, headers=headers).status_code == 200


def test_a_key_is_required_if_there_is_one(saved):
    tensor = {"tensor": [[[0.5] * 16] * 16] * 3}
    with client(saved, api_key="secret") as http:
        for method, path in (
            *(("GET", "/metrics"), ("GET", "/network")),
            *(("POST", "/predict"), ("POST", "/explain"), ("POST", "/admin/point")),
        ):
            assert http.request(method, path).status_code == 401
            wrong = http.request(method, path, headers={"x-api-key": "Secret"})
            assert wrong.status_code == 403
        assert http.get("/healthz").json() == {"status": "ok"}
        for headers in ({"x-api-key": "secret"}, {"authorization": "Bearer secret"}):
            assert http.post("/predict", json=tensor, headers=headers).status_code == 200
        unusual = {"x-api-key": "schlüssel".encode()}
        assert http.get("/metrics", headers=unusual).status_code == 403


def test_other_names_of_this_machine_are_refused(saved):
    with client(saved) as http:
        assert http.get("/healthz", headers={"host": "evil.example"}).status_code == 400
        assert http.get("/healthz", headers={"host": "localhost:8000"}).status_code == 200
    with client(saved, host="0.0.0.0") as http:
        assert http.get("/healthz", headers={"host": "served.example"}).status_code == 200


def test_other_sites_cannot_change_the_point(served):
    # A form of another site sends no JSON, and a script of it must ask first.
    body = json.dumps({"point": "cheap"})
    plain = {"content-type": "text/plain"}
    assert served.post("/admin/point", content=body, headers=plain).status_code == 422
    assert served.get("/network").json()["point"] == "saved"
    assert "access-control-allow-origin" not in served.options("/admin/point").headers


def test_clients_above_their_rate_are_refused():
    now = 0.0
    limiter = RateLimiter(10, lambda: now)
    assert sum(limiter.accepts("a") for _ in range(50)) == 20
    assert limiter.accepts("b")
    now = 0.55
    assert sum(limiter.accepts("a") for _ in range(50)) == 5
    now = 1000.0
    assert sum(limiter.accepts("a") for _ in range(50)) == 20
    assert all(RateLimiter(0).accepts("a") for _ in range(1000))


def test_the_rate_of_a_client_is_limited(saved):
    with client(saved, rate=0.5) as http:
        assert http.get("/network").status_code == 200
        response = http.get("/network")
        assert response.status_code == 429
        assert response.headers["retry-after"] == "1"
        assert http.get("/healthz").status_code == 200


class Held(Predictor):
    """Answers nobody until it is released."""

    def __init__(self, overloaded=False):
        self.overloaded = overloaded
        self.entered = threading.Semaphore(0)
        self.released = threading.Event()

    def start(self):
        pass

    def stop(self):
        pass

    async def answer(self, image, point):
        self.entered.release()
        while not self.released.is_set():
            await asyncio.sleep(0.01)
        if self.overloaded:
            raise OverloadedError("full")
        raise RuntimeError("a stage failed")


def test_requests_beyond_the_queue_get_503(saved, caplog):
    held = Held()
    tensor = {"tensor": [[[0.5] * 16] * 16] * 3}
    with client(saved, held, queue=2) as http, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(http.post, "/predict", json=tensor) for _ in range(2)]
        for _ in waiting:
            held.entered.acquire()
        response = http.post("/predict", json=tensor)
        held.released.set()
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert [w.result().status_code for w in waiting] == [500, 500]
        assert http.post("/predict", json=tensor).status_code == 500
        held.overloaded = True
        assert http.post("/predict", json=tensor).status_code == 503


def test_metrics_count_exits_requests_and_drift(ee, saved, caplog):
    batch = images(40, 3, 16, 16, seed=3)
    network = saved
    exits = ee.run_with(batch, ee.operating_points["cheap"].build_policy())[1]
    # Images that all exit at the exit that was rarest at calibration are others than those.
    with client(network) as http:
        for x in batch:
            http.post("/predict?point=cheap", json={"tensor": x.tolist()})
        http.get("/no/such/path")
        text = http.get("/metrics").text
        info = http.get("/network").json()
    counts = exits.bincount(minlength=3).tolist()
    found = values(text, "leenet_exits_total")
    for index, count in enumerate(counts):
        assert found.get((("exit", str(index)), ("point", "cheap")), 0) == count
        seconds = values(text, "leenet_answer_seconds_count")
        assert seconds.get((("exit", str(index)),), 0) == count
    assert info["exit_counts"] == counts
    requests = values(text, "leenet_requests_total")
    assert requests[("path", "/predict"), ("status", "200")] == 40
    assert requests[("path", "other"), ("status", "404")] == 1
    assert values(text, "leenet_stage_batch_size_sum")[(("stage", "0"),)] == 40
    monitor = leenet_fx.DriftMonitor(ee, "cheap")
    monitor.update(exits)
    evidence = values(text, "leenet_drift_log_evidence")[(("point", "cheap"),)]
    assert evidence == pytest.approx(monitor.log_evidence)
    ee.policy = leenet_fx.MaxProbability([0.25, 0.24])


def test_the_interface_is_described(served):
    paths = served.get("/openapi.json").json()["paths"]
    expected = {"/predict", "/explain", "/healthz", "/metrics", "/network", "/admin/point"}
    assert set(paths) == expected
    body = paths["/predict"]["post"]["requestBody"]["content"]
    assert set(body) >= {"multipart/form-data", "application/json", "application/vnd.safetensors"}


def test_a_real_server_regroups_requests_and_refuses_a_used_port(ee, saved):
    batch = images(32, 3, 16, 16, seed=4)
    expected = ee.predict(batch)
    settings = Settings(port=0, rate=0)
    app = create_app(saved, settings)
    listening = listen(settings)
    address = address_of(listening)
    port = int(address.rpartition(":")[2])
    with pytest.raises(InputError, match=f"Port {port} of 127.0.0.1 is in use"):
        listen(Settings(port=port))
    servers, started = [], threading.Event()
    thread = threading.Thread(target=serve_app, args=(app, listening, started.set, servers.append))
    thread.start()
    try:
        assert started.wait(30)
        with httpx.Client(base_url=address) as http, ThreadPoolExecutor(16) as pool:

            def send(i):
                return http.post("/predict", json={"tensor": batch[i].tolist()}).json()

            found = list(pool.map(send, range(32)))
            assert "server" not in http.get("/healthz").headers
            text = http.get("/metrics").text
        assert [f["exit_index"] for f in found] == expected.exit_index.tolist()
        assert [f["class_index"] for f in found] == expected.logits.argmax(1).tolist()
        assert values(text, "leenet_stage_batch_size_sum")[(("stage", "0"),)] == 32
    finally:
        servers[0].should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda f: f / "missing", StorageError, "is no network"),
        (lambda f: f, StorageError, "is no network"),
        (lambda f: f / "saved" / "exits.safetensors", StorageError, "checksum|sha256"),
    ],
)
def test_a_folder_without_a_network_is_an_error(folder, make, error, message):
    with pytest.raises(error, match=message):
        open_network(make(folder))


def test_a_network_needs_its_own_backbone(folder):
    with pytest.raises(InputError, match="not a model of timm or torchvision"):
        open_network(folder / "saved")
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1))
    with pytest.raises(StorageError, match="cannot be attached"):
        open_network(folder / "saved", other.append(torch.nn.Flatten()))


def test_an_unknown_point_is_an_error(saved):
    with pytest.raises(UnknownNameError, match="cheep"):
        saved.point("cheep")


@pytest.mark.parametrize(
    "options",
    [
        *({"batch_size": 0}, {"queue": 0}, {"max_bytes": -1}, {"max_pixels": 0}, {"port": 65536}),
        *({"max_delay": -1.0}, {"rate": float("nan")}, {"read_seconds": 0}, {"api_key": ""}),
        *({"max_delay": float("inf")}, {"api_key": "ü"}),
    ],
)
def test_settings_out_of_range_are_errors(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Settings(**options)
