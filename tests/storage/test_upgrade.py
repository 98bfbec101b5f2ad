"""Files of schema 1 are read with the same predictions."""

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from helpers import loader
from networks import images, tiny
from safetensors.torch import load_file

import leenet_fx
from leenet_fx import MaxProbability, NeverExit, Patience
from leenet_fx.policies import policy_to_dict
from leenet_fx.storage.config import read_config
from leenet_fx.storage.upgrade import upgrade_options, upgrade_state_dict

STORED = Path(__file__).parents[1] / "stored" / "schema1"
FOLDERS = ("pool", "dial", "cascade", "patience", "leenet-projection", "conv", "shut")
METHODS = {
    "pool": ("shallow-deep", {}),
    "dial": ("leenet-alpha", {}),
    "cascade": ("ztw", {}),
    "patience": ("pabee", {"recipe": "disjoint"}),
    "leenet-projection": ("leenet", {}),
    "conv": ("pteenet", {}),
    "shut": None,
}
POLICIES = {
    "pool": {"name": "max-prob", "thresholds": [0.9]},
    "dial": {"name": "alpha-gate", "alpha": 0.5, "thresholds": [0.0]},
    "cascade": {"name": "max-prob", "thresholds": [0.9]},
    "patience": {"name": "patience", "patience": [2.0]},
    "leenet-projection": {"name": "gate", "thresholds": [0.0]},
    "conv": {"name": "gate", "thresholds": [0.0]},
    "shut": {"name": "never"},
}


def backbone():
    """Another initialisation than the stored network's."""
    return tiny(seed=11, width=4)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_stored_network_predicts_as_it_did(name, caplog):
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        ee = leenet_fx.load(STORED / name, backbone())
    assert not caplog.text
    expected = load_file(STORED / name / "expected.safetensors")
    outputs = ee.all_exits(expected["images"])
    for index, logits in enumerate(outputs.logits):
        torch.testing.assert_close(logits, expected[f"exit{index}"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(outputs.gate_logits, expected["gates"], atol=1e-6, rtol=1e-6)
    prediction = ee.predict(expected["images"])
    assert torch.equal(prediction.exit_index, expected["exit_index"])
    torch.testing.assert_close(prediction.logits, expected["logits"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(prediction.cost, expected["cost"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", FOLDERS)
def test_policy_and_method_have_their_new_names(name):
    ee = leenet_fx.load(STORED / name, backbone())
    assert policy_to_dict(ee.policy) == POLICIES[name]
    method = ee.spec.method
    assert (None if method is None else (method.name, dict(method.options))) == METHODS[name]


def test_a_stored_network_is_written_in_the_new_schema(tmp_path):
    ee = leenet_fx.load(STORED / "dial", backbone())
    leenet_fx.save(ee, tmp_path, backbone=True)
    config = json.loads((tmp_path / "exit_config.json").read_text())
    assert config["schema"] == 2
    assert config["tracer"] == "fx"
    assert config["branch_options"] == {"gate": "alpha"}
    x = images(4, 3, 16, 16)
    again = leenet_fx.load(tmp_path, tiny(width=4))
    assert torch.equal(again.all_exits(x).gate_logits, ee.all_exits(x).gate_logits)


def test_a_stored_network_is_trained_by_its_method():
    ee = leenet_fx.load(STORED / "cascade", backbone())
    assert leenet_fx.fit(ee, loader(), epochs=1).method == "ztw"


@pytest.mark.parametrize("name", FOLDERS)
def test_the_record_of_training_has_the_new_words(name):
    stored = json.loads((STORED / name / "exit_config.json").read_text())
    config = read_config(STORED / name)
    assert config.tracer == "fx"
    assert config.costs == stored["costs"]
    if name == "shut":
        assert config.fit is None
        return
    assert config.fit["method"] == config.fit["plan"]["method"] == METHODS[name][0]
    assert config.fit["plan"]["epochs"] == stored["fit"]["plan"]["lengths"]
    assert [epoch["phase"] for epoch in config.fit["history"]] == [
        epoch["step"] for epoch in stored["fit"]["history"]
    ]


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("leenet", {"tempered": False}, {"temperature_scaled": False}),
        ("branchynet", {"weights": [1, 0.3]}, {"exit_weights": [1, 0.3]}),
        ("pabee", {"agreements": 3, "recipe": "joint"}, {"patience": 3, "recipe": "joint"}),
    ],
)
def test_options_phases_and_times_of_other_runs(tmp_path, method, options, expected):
    config = json.loads((STORED / "pool" / "exit_config.json").read_text())
    epoch = {"epoch": 1, "train_loss": 1.0, "val_loss": None, "seconds": 0.1}
    config["fit"]["method"] = config["fit"]["plan"]["method"] = method
    config["fit"]["options"] = config["fit"]["plan"]["options"] = options
    steps = ("together", "turns", "gates together")
    config["fit"]["history"] = [{"step": step, **epoch} for step in steps]
    config["costs"]["latency"] = {"plain": [1.0], "stages": [[1.0]]}
    (tmp_path / "exit_config.json").write_text(json.dumps(config))
    upgraded = read_config(tmp_path)
    assert upgraded.method == leenet_fx.methods.MethodConfig(
        method, {k: tuple(v) if isinstance(v, list) else v for k, v in expected.items()}
    )
    assert upgraded.fit["options"] == upgraded.fit["plan"]["options"] == expected
    phases = ["joint", "alternating", "joint gates"]
    assert [e["phase"] for e in upgraded.fit["history"]] == phases
    assert upgraded.costs["latency"] == {"backbone": [1.0], "stages": [[1.0]]}


def old_state(ee, policy):
    """The state dict of a network in the form of schema 1."""
    state = {name.replace(".neck.", ".body."): v for name, v in ee.state_dict().items()}
    encoded = list(json.dumps(policy).encode())
    return {**state, "exits._extra_state": torch.tensor(encoded, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"name": "shut"}, NeverExit()),
        ({"name": "max-prob", "thresholds": [0.7]}, MaxProbability(0.7)),
        ({"name": "patience", "patience": [1.0]}, Patience(1)),
    ],
)
def test_a_whole_state_dict_is_upgraded(policy, expected):
    ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
    state = old_state(ee, policy)
    other = leenet_fx.attach(tiny(seed=4), "every", example_inputs=images(1, 3, 16, 16), seed=4)
    other.load_state_dict(upgrade_state_dict(state))
    assert other.policy == expected
    x = images(4, 3, 16, 16)
    assert torch.equal(other.all_exits(x).gate_logits, ee.all_exits(x).gate_logits)


def test_the_tensors_of_a_users_own_branch_keep_their_names(tmp_path):
    ee = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
    ee.exits[0].body = torch.nn.Linear(2, 2)
    leenet_fx.save(ee, tmp_path)
    target = leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16))
    target.exits[0].body = torch.nn.Linear(2, 2)
    loaded = leenet_fx.load(tmp_path, target)
    assert torch.equal(loaded.exits[0].body.weight, ee.exits[0].body.weight)


def test_a_stored_run_yaml_has_the_new_words():
    stored = yaml.safe_load((STORED / "run.yaml").read_text())
    upgraded = upgrade_options(stored)
    assert upgraded["methods"] == "leenet,leenet-alpha,msdnet,pabee,shallow-deep"
    assert {**upgraded, "methods": stored["methods"]} == stored


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"split": "report"}, {"split": "test"}),
        ({"split": "fit"}, {"split": "train"}),
        ({"split": "val"}, {"split": "val"}),
        ({"gate": "dial"}, {"gate": "alpha"}),
        (
            {"method": "pabee", "option": ["agreements=3", "recipe=joint"]},
            {"method": "pabee", "option": ["patience=3", "recipe=joint"]},
        ),
        ({"method": "leenet-dial"}, {"method": "leenet-alpha"}),
        ({"option": ["agreements=3"]}, {"option": ["agreements=3"]}),
    ],
)
def test_options_of_the_command_line_are_renamed(options, expected):
    assert upgrade_options(options) == expected


def test_an_unknown_schema_is_an_error(tmp_path):
    config = json.loads((STORED / "pool" / "exit_config.json").read_text())
    (tmp_path / "exit_config.json").write_text(json.dumps({**config, "schema": 3}))
    with pytest.raises(leenet_fx.StorageError, match="expected schema 1 or 2, found 3"):
        read_config(tmp_path)
