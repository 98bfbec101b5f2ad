"""LGViT: heads for tokens, against plain computations, and end to end on digits."""

import math

import pytest
import timm
import torch
import torchvision
from networks import images, tiny
from torch.nn import functional as F

import leenet_fx
from leenet_fx import InputError
from leenet_fx.data.digits import load_digits
from leenet_fx.parts.exit_site import ExitSite, FeatureShape
from leenet_fx.parts.token_heads import GlobalHead, LocalHead, TokenNeck


def vit(seed=0, **options):
    torch.manual_seed(seed)
    values = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
    values |= {"in_chans": 1, "num_classes": 10, **options}
    return timm.create_model("vit_tiny_patch16_224", **values).eval()


def site(tokens=17, channels=6, share=0.2, grid=(4, 4)):
    return ExitSite((FeatureShape((1, tokens, channels), 2, grid),), 5, share=share)


def randomize(module):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
                if "running_var" in name:
                    tensor.abs_().add_(0.5)
    return module.eval()


def normalized(x, norm):
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var, w, b = (
        at.view(shape) for at in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + 1e-5).sqrt() * w + b


@pytest.mark.parametrize(("prefix", "grid"), [(1, (4, 4)), (0, (3, 5)), (5, (6, 2))])
@torch.no_grad()
def test_local_heads_convolve_the_grid_of_patches(prefix, grid):
    height, width = grid
    count = height * width
    neck = randomize(TokenNeck(site(prefix + count, grid=grid), width=8))
    assert (neck.prefix, neck.grid) == (prefix, grid)
    layers = neck.layers
    assert isinstance(layers, LocalHead)
    x = images(3, prefix + count, 6)
    # Patch n is at row n / width and column n mod width.
    maps = torch.stack([x[:, prefix + n] for n in range(count)], 2).view(3, 6, height, width)
    expanded = torch.einsum("bchw,oc->bohw", maps, layers.expand[0].weight[:, :, 0, 0])
    expanded = F.gelu(normalized(expanded, layers.expand[1]))
    padded, local = F.pad(expanded, (1, 1, 1, 1)), 0
    for i in range(3):
        for j in range(3):
            weight = layers.local[0].weight[:, 0, i, j].view(1, -1, 1, 1)
            local = local + weight * padded[:, :, i : i + height, j : j + width]
    local = F.gelu(normalized(local, layers.local[1]))
    mixed = torch.einsum("bchw,oc->bohw", local, layers.mix[0].weight[:, :, 0, 0])
    mixed = normalized(mixed, layers.mix[1]).mean((2, 3))
    front = (x[:, :prefix] if prefix else x).mean(1) @ layers.front[0].weight.T
    expected = F.relu(mixed + normalized(front, layers.front[1])) * 16 / math.sqrt(8)
    assert torch.allclose(neck(*neck.pool(x)), expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_global_heads_attend_to_averaged_patches():
    neck = randomize(TokenNeck(site(share=0.9), width=32, windows=2))
    layers = neck.layers
    assert isinstance(layers, GlobalHead)
    assert layers.heads == 2
    x = images(3, 17, 6)
    windows = x[:, 1:].view(3, 2, 2, 2, 2, 6).mean((2, 4)).view(3, 4, 6)
    tokens = F.layer_norm(torch.cat([x[:, :1], windows], 1), (6,))
    tokens = tokens * layers.norm.weight + layers.norm.bias
    query, key, value = (
        tokens @ at.weight.T + at.bias for at in (layers.query, layers.key, layers.value)
    )
    means = []
    for head in (slice(0, 16), slice(16, 32)):
        scores = query[..., head] @ key[..., head].transpose(1, 2) / 4
        means.append((scores.softmax(2) @ value[..., head]).mean(1))
    output = normalized(torch.cat(means, 1) @ layers.output[0].weight.T, layers.output[1])
    expected = F.relu(output) * 16 / math.sqrt(32)
    assert torch.allclose(neck(*neck.pool(x)), expected, atol=1e-3, rtol=1e-4)


def test_heads_are_local_up_to_a_share_of_the_flops():
    def kinds(**options):
        ee = leenet_fx.attach(vit(depth=2), "every", method="lgvit", branch_options=options)
        return [type(branch.neck.layers).__name__[0] for branch in ee.exits.branches()]

    assert kinds() == ["L", "G"]
    assert kinds(local_share=1) == ["L"] * 2
    assert kinds(local_share=0.0) == ["G"] * 2


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 8, 4, 4), 1), ((1, 4, 4, 8), 3), ((1, 8), 1), ((1, 8, 17), 1)]
)
def test_features_without_tokens_are_refused_by_name(shape, axis):
    with pytest.raises(InputError, match="An 'lgvit' branch reads the tokens"):
        TokenNeck(ExitSite((FeatureShape(shape, axis),), 5))


def test_networks_without_tokens_are_refused():
    with pytest.raises(InputError, match=r"reads the tokens .* got \[\(1, 8, 16, 16\)\]: 'pool'"):
        leenet_fx.attach(tiny(), "every", method="lgvit", example_inputs=images(1, 3, 16, 16))
    two = (FeatureShape((1, 16, 8), 2), FeatureShape((1, 1, 8), 2))
    with pytest.raises(InputError, match="reads the tokens"):
        TokenNeck(ExitSite(two, 5))


@pytest.mark.parametrize(
    ("size", "patch", "options", "grid", "prefix"),
    [
        ((112, 128), 8, {}, (14, 16), 1),
        ((32, 40), 8, {}, (4, 5), 1),
        ((24, 32), 8, {"class_token": False, "global_pool": "avg"}, (3, 4), 0),
        ((40, 24), 8, {}, (5, 3), 1),
        ((16, 16), 8, {"reg_tokens": 4}, (2, 2), 5),
        ((8, 64), 8, {"num_heads": 1}, (1, 8), 1),
        ((64, 8), 8, {"num_heads": 1}, (8, 1), 1),
    ],
)
def test_patches_are_those_of_the_network(size, patch, options, grid, prefix):
    model = vit(depth=2, img_size=size, patch_size=patch, **options)
    assert model.patch_embed.grid_size == grid
    ee = leenet_fx.attach(model, "every", method="lgvit")
    for branch in ee.exits.branches():
        assert (branch.neck.grid, branch.neck.prefix) == (grid, prefix)
    x = images(3, 1, *size)
    index = torch.arange(3)
    found = ee.predict(x, exit_index=index).logits
    expected = ee.all_exits(x).logits
    for at in index.tolist():
        assert torch.allclose(found[at], expected[at][at], atol=1e-4)


def test_grids_of_other_networks_are_found():
    torch.manual_seed(0)
    options = {"image_size": 48, "patch_size": 8, "num_layers": 2, "num_heads": 2}
    vision = torchvision.models.VisionTransformer(**options, hidden_dim=24, mlp_dim=48).eval()
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, depth=2).eval()

    def grids(model):
        ee = leenet_fx.attach(model, "every", method="lgvit")
        return [(branch.neck.grid, branch.neck.prefix) for branch in ee.exits.branches()]

    assert set(grids(vision)) == {((6, 6), 1)}
    # Its downsampling is one operator of the graph, which hides the map.
    levit = timm.create_model("levit_128s", num_classes=5).eval()
    with pytest.raises(InputError, match="makes its 49 tokens of none"):
        grids(levit)
    assert set(grids(distilled)) == {((14, 14), 2)}


def test_tokens_that_come_from_no_map_need_a_grid():
    without = site(17, grid=None)
    with pytest.raises(
        InputError, match=r"makes its 17 tokens of none: .*'grid': \[height, width\]"
    ):
        TokenNeck(without)
    neck = TokenNeck(without, grid=[2, 8])
    assert (neck.grid, neck.prefix) == ((2, 8), 1)
    for grid in (4, [4], [4, 0], [4, 4.0], [True, 4], "44"):
        with pytest.raises(InputError, match=r"must be \[height, width\]"):
            TokenNeck(without, grid=grid)
    with pytest.raises(InputError, match="has 3 x 6 patches, and there are 17 tokens"):
        TokenNeck(without, grid=[3, 6])


def test_another_number_of_tokens_is_refused():
    with pytest.raises(InputError, match="built for 17 tokens got 21: it accepts one image size"):
        TokenNeck(site()).pool(images(2, 21, 6))


def test_a_last_batch_of_one_image_is_trained_on(digits):
    ee = leenet_fx.attach(vit(depth=2), "every", method="lgvit")
    first = digits["train"].loader(17)
    batch, labels = next(iter(first))
    leenet_fx.fit(ee, [(batch[:16], labels[:16]), (batch[16:], labels[16:])], epochs=2)
    assert all(bool(torch.isfinite(logits).all()) for logits in ee.all_exits(batch).logits)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("width", [0, 1.5, True, "8"]),
        ("windows", [0, None]),
        ("kernel", [0, 2, "3"]),
        ("local_share", [-0.1, 1.1, "half", True, float("nan")]),
    ],
)
def test_options_out_of_range_are_refused(option, values):
    for value in values:
        with pytest.raises(InputError, match=option):
            TokenNeck(site(), **{option: value})


@pytest.fixture(scope="module")
def digits():
    return load_digits(0, views=4)


@pytest.fixture(scope="module")
def backbone(digits):
    """A transformer after brief training."""
    model = vit(depth=3).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(5):
        for batch, labels in digits["train"].loader(128, shuffle):
            optimizer.zero_grad()
            F.cross_entropy(model(batch), labels).backward()
            optimizer.step()
    return model.eval()


def test_exits_on_digits_are_trained_run_saved_and_loaded(tmp_path, digits, backbone):
    ee = leenet_fx.attach(backbone, "every", method="lgvit")
    test = next(iter(digits["test"].loader(len(digits["test"].images))))
    leenet_fx.fit(ee, digits["train"].loader(64, torch.Generator().manual_seed(0)), epochs=1)
    with torch.no_grad():
        logits = ee.all_exits(test[0]).logits
        assert torch.equal(logits[-1], backbone(test[0]))
    accurate = [float((at.argmax(1) == test[1]).float().mean()) for at in logits]
    # A head on early tokens is not far behind so briefly trained a network.
    assert min(accurate[:-1]) > accurate[-1] - 0.1
    assert accurate[-1] > 0.3
    count = len(test[1])
    forced = ee.predict(test[0], exit_index=torch.arange(count) % 4)
    for index in range(4):
        chosen = torch.arange(count) % 4 == index
        assert torch.allclose(forced.logits[chosen], logits[index][chosen], atol=1e-3)
    leenet_fx.set_budget(ee, digits["calibration"].loader(64), 0.8)
    leenet_fx.save(ee, tmp_path / "saved")
    loaded = leenet_fx.load(tmp_path / "saved", backbone)
    assert torch.equal(loaded.predict(test[0]).logits, ee.predict(test[0]).logits)
    # The kind of a head depends on where it stands, not on how many exits there are.
    pruned = leenet_fx.prune(ee, [2])
    leenet_fx.save(pruned, tmp_path / "pruned")
    again = leenet_fx.load(tmp_path / "pruned", backbone)
    assert isinstance(again.exits[0].neck.layers, GlobalHead)
    with torch.no_grad():
        assert torch.equal(again.all_exits(test[0]).logits[0], logits[2])
