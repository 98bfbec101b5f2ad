"""save and load: only what is new, on the right network or not at all."""

import json
import logging

import pytest
import timm
import torch
from helpers import attached, loader
from networks import images, tiny
from safetensors.torch import load_file, save_file
from torch import nn

import leenet_fx
from leenet_fx import InputError, MaxProbability, StorageError, UnknownNameError
from leenet_fx.parts.branches import list_branches

X = images(12, 3, 16, 16)


def fitted(**options):
    ee = attached(**options)
    leenet_fx.fit(ee, loader(), epochs=2, method="leenet")
    return ee


def edit(folder, **changes):
    path = folder / "exit_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("branch", list_branches())
def test_what_is_loaded_answers_as_what_was_saved(tmp_path, branch):
    ee = fitted(branch=branch)
    ee.policy = MaxProbability([0.5, 0.6, 0.7, 0.8])
    leenet_fx.save(ee, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"exits.safetensors", "exit_config.json"}
    base = tiny()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    loaded = leenet_fx.load(tmp_path, base)
    found, expected = loaded.predict(X), ee.predict(X)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.exit_index, expected.exit_index)
    assert loaded.policy == ee.policy
    assert loaded.costs == ee.costs
    assert loaded.spec.placement == ee.spec.placement
    assert all(torch.equal(before[key], value) for key, value in base.state_dict().items())


def test_only_what_is_new_is_written(tmp_path):
    ee = fitted()
    leenet_fx.save(ee, tmp_path / "new")
    written = load_file(tmp_path / "new" / "exits.safetensors")
    assert written
    assert all(name.startswith("exits.") for name in written)
    leenet_fx.save(ee, tmp_path / "all", backbone=True)
    everything = load_file(tmp_path / "all" / "exits.safetensors")
    assert set(everything) == {*ee.state_dict()} - {"exits._extra_state"}
    other = tiny(seed=9)
    loaded = leenet_fx.load(tmp_path / "all", other)
    assert torch.equal(loaded(X), ee(X))


def test_a_final_classifier_that_was_trained_is_new(tmp_path):
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


def test_an_encoders_head_is_new(tmp_path):
    torch.manual_seed(0)
    encoder = timm.create_model("resnet18", num_classes=0).eval()
    x = images(2, 3, 64, 64)
    ee = leenet_fx.attach(encoder, "linear", num_exits=2, num_classes=4, example_inputs=x)
    leenet_fx.save(ee, tmp_path)
    assert any("exits.final" in name for name in load_file(tmp_path / "exits.safetensors"))
    assert torch.equal(leenet_fx.load(tmp_path, encoder)(x), ee(x))


def test_a_library_model_is_found_by_name(tmp_path, caplog):
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
    assert "weights are not those" not in caplog.text


def test_a_model_of_ones_own_must_be_given(tmp_path):
    leenet_fx.save(fitted(), tmp_path)
    with pytest.raises(InputError, match=r"made for 'TinyNet', which is not a name .* pass model="):
        leenet_fx.load(tmp_path)
    edit(tmp_path, model="evil.py:run")
    with pytest.raises(InputError, match="pass model="):
        leenet_fx.load(tmp_path)


def test_a_network_with_exits_can_be_filled(tmp_path):
    ee = fitted()
    leenet_fx.save(ee, tmp_path)
    bare = attached()
    assert leenet_fx.load(tmp_path, bare) is bare
    assert torch.equal(bare(X), ee(X))


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


def test_another_network_is_refused_with_path_expected_and_found(tmp_path):
    leenet_fx.save(fitted(), tmp_path)
    with pytest.raises(StorageError, match=r"exit_config.json'.*num_classes|another one"):
        leenet_fx.load(tmp_path, tiny(classes=7))
    with pytest.raises(StorageError, match=r"between the input and 'blocks.0' is another one"):
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


def test_not_strict_loads_another_function_with_a_warning(tmp_path, caplog):
    leenet_fx.save(fitted(), tmp_path)
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        loaded = leenet_fx.load(tmp_path, Other().eval(), strict=False)
    assert loaded(X).shape == (12, 5)
    assert "is another one" in caplog.text


def test_other_weights_are_warned_of(tmp_path, caplog):
    leenet_fx.save(fitted(), tmp_path)
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        leenet_fx.load(tmp_path, tiny(seed=3))
    assert "not those the exits were fitted on" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "exit_config.json").unlink(), r"Cannot read '.*exit_config.json'"),
        (lambda f: (f / "exit_config.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "exit_config.json").write_text("[]"), "expected schema 1, found list"),
        (lambda f: edit(f, schema=9), "expected schema 1, found 9"),
        (lambda f: (f / "exit_config.json").write_text('{"schema": 1}'), "lacks 'branch'"),
        (lambda f: (f / "exits.safetensors").unlink(), r"Cannot read '.*exits.safetensors'"),
        (lambda f: (f / "exits.safetensors").write_bytes(b"no"), "is not the file that"),
        (lambda f: edit(f, placement={"names": 3}), "placement is"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, damage, message):
    leenet_fx.save(fitted(), tmp_path)
    damage(tmp_path)
    with pytest.raises(StorageError, match=message):
        leenet_fx.load(tmp_path, tiny())


def test_tensors_that_do_not_fit_change_nothing(tmp_path):
    import hashlib

    leenet_fx.save(fitted(), tmp_path)
    weights = load_file(tmp_path / "exits.safetensors")
    weights["exits.0.head.linear.weight"] = torch.zeros(2, 2)
    save_file(weights, tmp_path / "exits.safetensors")
    digest = hashlib.sha256((tmp_path / "exits.safetensors").read_bytes()).hexdigest()
    edit(tmp_path, weights_sha256=digest)
    bare = attached()
    before = {key: value.clone() for key, value in bare.state_dict().items()}
    with pytest.raises(StorageError, match=r"'exits.0.head.linear.weight' has shape \(2, 2\)"):
        leenet_fx.load(tmp_path, bare)
    assert all(torch.equal(before[key], value) for key, value in bare.state_dict().items())


def test_a_branch_that_is_not_registered_is_named(tmp_path):
    leenet_fx.save(fitted(), tmp_path)
    edit(tmp_path, branch="pooll")
    with pytest.raises(UnknownNameError, match="Did you mean 'pool'"):
        leenet_fx.load(tmp_path, tiny())
