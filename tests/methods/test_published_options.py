"""Options by which a method's parts are those of the authors' code."""

import pytest
import torch
from helpers import data, loader
from networks import images, tiny

import leenet_fx

OPTIONS = [
    ("boostnet", {"ensemble_reweight": 0.5, "recipe": "disjoint"}, "pool", "additive-half"),
    ("e2cm", {"euclidean": True}, "pool", "means-euclidean"),
    ("shallow-deep", {"mixed_pooling": True}, "mixpool", None),
    ("ztw", {"conv_heads": True}, "strided", "cascade-norm"),
]


@pytest.mark.parametrize(("method", "options", "branch", "head"), OPTIONS)
def test_networks_with_published_parts_are_trained_saved_and_loaded(
    tmp_path, method, options, branch, head
):
    chosen = leenet_fx.get_method(method, **options)
    example = images(1, 3, 16, 16)
    ee = leenet_fx.attach(tiny(), "every", method=chosen, example_inputs=example)
    assert ee.spec.branch == branch
    assert ee.spec.branch_options.get("head") == head
    train = loader()
    leenet_fx.fit(ee, train, method=chosen, epochs=2)
    cached = leenet_fx.attach(tiny(), "every", method=chosen, example_inputs=example)
    leenet_fx.fit(cached, train, method=chosen, epochs=2, cache=True)
    x = data(24, seed=5)[0]
    with torch.no_grad():
        expected, others = ee.all_exits(x), cached.all_exits(x)
    for own, other in zip(expected.logits, others.logits, strict=True):
        assert torch.allclose(own, other, atol=1e-3)
    # Exits of conditional execution are those of the whole network.
    forced = ee.predict(x, exit_index=torch.arange(24) % 5)
    for sample, index in enumerate(forced.exit_index.tolist()):
        assert torch.allclose(forced.logits[sample], expected.logits[index][sample], atol=1e-4)
    leenet_fx.save(ee, tmp_path / "saved")
    loaded = leenet_fx.load(tmp_path / "saved", tiny())
    assert loaded.spec.method == chosen.config
    with torch.no_grad():
        for own, other in zip(expected.logits, loaded.all_exits(x).logits, strict=True):
            assert torch.equal(own, other)


def test_other_heads_of_a_method_are_refused():
    ee = leenet_fx.attach(tiny(), "every", method="boostnet", example_inputs=images(1, 3, 16, 16))
    half = leenet_fx.get_method("boostnet", ensemble_reweight=0.5)
    with pytest.raises(leenet_fx.InputError, match="requires branches with head='additive-half'"):
        leenet_fx.fit(ee, loader(), method=half, epochs=1)
    with pytest.raises(leenet_fx.InputError, match="requires branches with head='cascade-norm'"):
        leenet_fx.fit(ee, loader(), method="ztw", epochs=1)


@pytest.mark.parametrize(
    ("attached", "method", "options", "message"),
    [
        (
            "shallow-deep",
            "shallow-deep",
            {"mixed_pooling": True},
            r"branch='mixpool', but these have branch='pool': attach with "
            r"method=leenet_fx.get_method\('shallow-deep', mixed_pooling=True\)",
        ),
        ("ztw", "ztw", {"conv_heads": True}, "branch='strided', but .* branch='pool'"),
        (None, "lgvit", {}, "branch='lgvit', but .*: attach with method='lgvit'"),
        (
            "distilled",
            "distilled",
            {"ensembles": True},
            r"head='ensemble', .*: attach with .*get_method\('distilled', ensembles=True\)",
        ),
        ("e2cm", "e2cm", {"euclidean": True}, r"get_method\('e2cm', euclidean=True\)"),
    ],
)
def test_other_branches_are_refused_with_the_call_that_helps(
    caplog, attached, method, options, message
):
    example = images(1, 3, 16, 16)
    ee = leenet_fx.attach(tiny(), "every", method=attached, example_inputs=example)
    chosen = leenet_fx.get_method(method, **options)
    with pytest.raises(leenet_fx.InputError, match=message):
        leenet_fx.fit(ee, loader(), method=chosen, epochs=1)
    assert "is meant for branches" not in caplog.text
    assert ee.spec.method == (leenet_fx.get_method(attached).config if attached else None)


@pytest.mark.parametrize(
    ("attached", "method", "options", "expected"),
    [
        ("eenets", "eenets", {"recipe": "disjoint"}, "gate='confidence', not 'features'"),
        ("diffbranch", "diffbranch", {"recipe": "disjoint"}, "gate='confidence', not 'features'"),
        (None, "eenets", {}, "gate='features', not 'confidence'"),
        (None, "distilled", {}, None),
        ("distilled", "shallow-deep", {}, None),
        ("eenets", "eenets", {}, None),
    ],
)
def test_gates_that_are_not_the_presets_are_warned_of(caplog, attached, method, options, expected):
    example = images(1, 3, 16, 16)
    ee = leenet_fx.attach(tiny(), "every", method=attached, example_inputs=example)
    leenet_fx.fit(ee, loader(32), method=leenet_fx.get_method(method, **options), epochs=1)
    meant = [text for text in caplog.messages if "is meant for branches" in text]
    assert len(meant) == (expected is not None)
    assert all(expected in text for text in meant)
