"""save and load: weights of exits, on the network that they were fitted on."""

import hashlib
import json
import logging

import pytest
import timm
import torch
from helpers import attached, loader
from networks import branches_of_images, images, tiny
from safetensors.torch import load_file, save_file
from torch import nn

import leenet_fx
from leenet_fx import InputError, MaxProbability, StorageError, UnknownNameError
from leenet_fx.parts.branches import get_branch

X = images(12, 3, 16, 16)


def fitted(**options):
    ee = attached(**options)
    leenet_fx.fit(ee, loader(), epochs=2, method="leenet")
    return ee


def edit(folder, **changes):
    path = folder / "exit_config.json"
    config = json.loads(path.read_text())
    config.pop("content_sha256", None)
    path.write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("branch", branches_of_images())
def test_a_loaded_network_predicts_as_the_saved_one(tmp_path, branch):
    ee = fitted(branch=branch)
    ee.policy = MaxProbability([0.5, 0.6, 0.7, 0.8])
    leenet_fx.save(ee, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"exits.safetensors", "exit_config.json", "README.md"}
    base = tiny()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    loaded = leenet_fx.load(tmp_path, base)
    prediction, expected = loaded.predict(X), ee.predict(X)
    assert torch.equal(prediction.logits, expected.logits)
    assert torch.equal(prediction.exit_index, expected.exit_index)
    assert loaded.policy == ee.policy
    assert loaded.costs == ee.costs
    assert loaded.spec.placement == ee.spec.placement
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())


def test_the_backbone_is_written_only_on_request(tmp_path):
    ee = fitted()
    leenet_fx.save(ee, tmp_path / "new")
    written = load_file(tmp_path / "new" / "exits.safetensors")
    assert written
    assert all(name.startswith("exits.") for name in written)
    leenet_fx.save(ee, tmp_path / "all", backbone=True)
    everything = load_file(tmp_path / "all" / "exits.safetensors")
    assert set(everything) == {*ee.state_dict()} - {"exits.thresholds"}
    other = tiny(seed=9)
    loaded = leenet_fx.load(tmp_path / "all", other)
    assert torch.equal(loaded(X), ee(X))


def test_a_trained_or_replaced_final_classifier_is_written(tmp_path):
    ee = attached()
    leenet_fx.fit(
        ee, loader(), epochs=1, train_final=True, out=tmp_path / "trained", method="leenet"
    )
    assert {"fc.weight", "fc.bias"} <= set(load_file(tmp_path / "trained" / "exits.safetensors"))
    loaded = leenet_fx.load(tmp_path / "trained", tiny())
    assert torch.equal(loaded(X), ee(X))
    three = attached(num_classes=3)
    leenet_fx.fit(three, loader(classes=3), epochs=1, out=tmp_path / "replaced", method="leenet")
    loaded = leenet_fx.load(tmp_path / "replaced", tiny())
    assert torch.equal(loaded(X), three(X))
    again = leenet_fx.load(tmp_path / "replaced", loaded)
    assert again is loaded


def test_the_classifier_added_to_an_encoder_is_written(tmp_path):
    torch.manual_seed(0)
    encoder = timm.create_model("resnet18", num_classes=0).eval()
    x = images(2, 3, 64, 64)
    ee = leenet_fx.attach(encoder, "linear", num_exits=2, num_classes=4, example_inputs=x)
    leenet_fx.save(ee, tmp_path)
    assert any("exits.final" in name for name in load_file(tmp_path / "exits.safetensors"))
    assert torch.equal(leenet_fx.load(tmp_path, encoder)(x), ee(x))


def test_a_library_model_is_built_by_name(tmp_path, caplog):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10).eval()
    x = images(2, 3, 64, 64)
    ee = leenet_fx.attach(model, "linear", num_exits=2, example_inputs=x)
    assert ee.spec.profile.model.startswith("timm/resnet18")
    leenet_fx.save(ee, tmp_path, backbone=True)
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        loaded = leenet_fx.load(tmp_path)
    assert torch.equal(loaded(x), ee(x))
    assert not loaded.training
    assert "weights differ" not in caplog.text


def test_a_users_own_model_must_be_passed(tmp_path):
    leenet_fx.save(fitted(), tmp_path)
    with pytest.raises(
        InputError, match=r"'TinyNet', which is not a model of timm or torchvision: pass .* model="
    ):
        leenet_fx.load(tmp_path)
    edit(tmp_path, model="evil.py:run")
    with pytest.raises(InputError, match="as model="):
        leenet_fx.load(tmp_path)


def test_a_network_with_exits_receives_the_weights(tmp_path):
    ee = fitted()
    leenet_fx.save(ee, tmp_path)
    untrained = attached()
    assert leenet_fx.load(tmp_path, untrained) is untrained
    assert torch.equal(untrained(X), ee(X))


class Other(nn.Module):
    """TinyNet with another activation: the same tensors, another function."""

    def __init__(self):
        super().__init__()
        for name, child in tiny().named_children():
            setattr(self, name, child)
        for block in self.blocks:
            block.act = nn.GELU()

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def test_another_network_is_an_error_with_path_expected_and_found(tmp_path):
    leenet_fx.save(fitted(), tmp_path)
    with pytest.raises(StorageError, match=r"exit_config.json'.*num_classes|differs between"):
        leenet_fx.load(tmp_path, tiny(classes=7))
    with pytest.raises(StorageError, match=r"differs between the input and 'blocks.0'"):
        leenet_fx.load(tmp_path, tiny(width=16))
    with pytest.raises(StorageError, match=r"expected \w+, found \w+ .*strict=False"):
        leenet_fx.load(tmp_path, Other().eval())
    fewer = leenet_fx.attach(tiny(), ["blocks.1"], example_inputs=X[:1])
    before = {key: value.clone() for key, value in fewer.state_dict().items()}
    with pytest.raises(StorageError, match=r"exits: expected after \['blocks.0'"):
        leenet_fx.load(tmp_path, fewer)
    assert all(torch.equal(before[key], value) for key, value in fewer.state_dict().items())
    with pytest.raises(StorageError, match="branch: expected pool, found flatten"):
        leenet_fx.load(tmp_path, attached(branch="flatten"))


def test_without_strict_other_operations_are_a_warning(tmp_path, caplog):
    leenet_fx.save(fitted(), tmp_path)
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        loaded = leenet_fx.load(tmp_path, Other().eval(), strict=False)
    assert loaded(X).shape == (12, 5)
    assert "the network differs between" in caplog.text


def test_another_backbones_weights_are_a_warning(tmp_path, caplog):
    leenet_fx.save(fitted(), tmp_path)
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        leenet_fx.load(tmp_path, tiny(seed=3))
    assert "weights differ from those the exits were fitted on" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "exit_config.json").unlink(), r"Cannot read '.*exit_config.json'"),
        (lambda f: (f / "exit_config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "exit_config.json").write_text("[]"), "expected an object, found list"),
        (lambda f: edit(f, schema=9), "expected schema 1 or 2, found 9"),
        (lambda f: (f / "exit_config.json").write_text('{"schema": 2}'), "lacks 'branch'"),
        (lambda f: (f / "exits.safetensors").unlink(), r"Cannot read '.*exits.safetensors'"),
        (
            lambda f: (f / "exits.safetensors").write_bytes(b"no"),
            "does not belong to the exit_config.json",
        ),
        (lambda f: edit(f, method={"options": {}}), "lacks 'method.name'"),
        (lambda f: edit(f, placement={"names": 3}), "lacks 'placement.indices'"),
        (
            lambda f: edit(f, placement={"strategy": "fixed", "indices": [0], "names": 3}),
            "'placement.names': Input should be a valid array, found 3",
        ),
        (lambda f: edit(f, num_classes="5"), "'num_classes': .* valid integer, found '5'"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    leenet_fx.save(fitted(), tmp_path)
    damage(tmp_path)
    with pytest.raises(StorageError, match=message):
        leenet_fx.load(tmp_path, tiny())


def test_tensors_of_another_shape_leave_the_network_unchanged(tmp_path):
    leenet_fx.save(fitted(), tmp_path)
    weights = load_file(tmp_path / "exits.safetensors")
    weights["exits.0.head.linear.weight"] = torch.zeros(2, 2)
    save_file(weights, tmp_path / "exits.safetensors")
    digest = hashlib.sha256((tmp_path / "exits.safetensors").read_bytes()).hexdigest()
    edit(tmp_path, weights_sha256=digest)
    untrained = attached()
    before = {key: value.clone() for key, value in untrained.state_dict().items()}
    with pytest.raises(
        StorageError, match=r"'exits.0.head.linear.weight': expected shape .* found \(2, 2\)"
    ):
        leenet_fx.load(tmp_path, untrained)
    assert all(torch.equal(before[key], value) for key, value in untrained.state_dict().items())


def test_an_unknown_branch_is_named_with_the_nearest(tmp_path):
    leenet_fx.save(fitted(), tmp_path)
    edit(tmp_path, branch="pooll")
    with pytest.raises(UnknownNameError, match="Did you mean 'pool'"):
        leenet_fx.load(tmp_path, tiny())


def test_the_method_is_remembered(tmp_path):
    ee = attached(method="ztw")
    assert ee.spec.method.name == "ztw"
    leenet_fx.save(ee, tmp_path)
    loaded = leenet_fx.load(tmp_path, tiny())
    assert loaded.spec.method == ee.spec.method
    result = leenet_fx.fit(loaded, loader(), epochs=1)
    assert result.method == "ztw"
    assert {epoch["phase"] for epoch in result.to_dict()["history"]} == {"exits", "ensembles"}


def test_options_of_the_method_are_remembered(tmp_path):
    weights = (1.0, 0.5, 0.5, 0.5, 0.3)
    method = leenet_fx.get_method("branchynet", exit_weights=weights, recipe="disjoint")
    leenet_fx.save(attached(method=method), tmp_path)
    config = json.loads((tmp_path / "exit_config.json").read_text())
    assert config["method"]["options"] == {"exit_weights": list(weights), "recipe": "disjoint"}
    assert leenet_fx.load(tmp_path, tiny()).spec.method == method.config


def test_options_that_json_cannot_hold_are_an_error_and_nothing_is_written(tmp_path):
    def branch(site, *, scale):
        return get_branch("pool")(site)

    ee = attached(branch=branch, branch_options={"scale": 1j})
    with pytest.raises(InputError, match="must be plain values"):
        leenet_fx.save(ee, tmp_path)
    assert not list(tmp_path.iterdir())
