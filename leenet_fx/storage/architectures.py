"""Recognition of library models by the names and shapes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from leenet_fx.graph.catalog import create_model

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "layer1.0.conv1.weight": (
        *(f"torchvision/resnet{depth}" for depth in (18, 34, 50, 101, 152)),
        *("torchvision/wide_resnet50_2", "torchvision/resnext50_32x4d", "timm/seresnet50"),
    ),
    "features.denseblock1.denselayer1.conv1.weight": tuple(
        f"torchvision/densenet{depth}" for depth in (121, 161, 169, 201)
    ),
    "classifier.6.weight": (
        "torchvision/alexnet",
        *(f"torchvision/vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "_bn")),
    ),
    "features.0.0.weight": (
        *("torchvision/mobilenet_v2", "torchvision/mobilenet_v3_small"),
        *("torchvision/mobilenet_v3_large", "torchvision/efficientnet_v2_s"),
        *(f"torchvision/efficientnet_b{size}" for size in range(4)),
        *(f"torchvision/convnext_{size}" for size in ("tiny", "small", "base")),
        *(f"torchvision/swin_{size}" for size in "tsb"),
    ),
    "conv_proj.weight": tuple(f"torchvision/vit_{size}" for size in ("b_16", "b_32", "l_16")),
    "patch_embed.proj.weight": (
        *(f"timm/vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
        *(f"timm/swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")),
    ),
    "conv_stem.weight": (
        *(f"timm/efficientnet_b{size}" for size in range(4)),
        *("timm/mobilenetv3_small_100", "timm/mobilenetv3_large_100", "timm/mobilenetv2_100"),
    ),
    "stem.0.weight": tuple(f"timm/convnext_{s}" for s in ("nano", "tiny", "small", "base")),
}
"""A weight that the models of a family have, and common models of the family."""


def identify(shapes: Shapes) -> str | None:
    """Return the library model of these weights, whatever its number of classes.

    Args:
        shapes: shape of each weight, by name.

    Returns:
        `timm/NAME` or `torchvision/NAME`, None if it is none of `FAMILIES`.
    """
    names = _without_counters(shapes)
    for weight, models in FAMILIES.items():
        if weight not in shapes:
            continue
        for name in models:
            try:
                state = create_model(name, device="meta").state_dict()
            except (RuntimeError, NotImplementedError):
                continue
            own = {key: tuple(value.shape) for key, value in state.items()}
            if _without_counters(own) != names:
                continue
            if agree(own, shapes) or class_counts(own, shapes) is not None:
                return name
    return None


def agree(expected: Shapes, found: Shapes) -> bool:
    """Return whether the names that both have are of equal shapes."""
    return all(found[name] == shape for name, shape in expected.items() if name in found)


def class_counts(expected: Shapes, found: Shapes) -> tuple[int, int] | None:
    """Return the numbers of classes by which alone two models differ; None if more differs.

    Args:
        expected: shape of each weight of a model, by name.
        found: likewise, of another one.

    Returns:
        The number of classes of `expected` and of `found`.
    """
    pairs = [(shape, found[name]) for name, shape in expected.items() if name in found]
    different = [(a, b) for a, b in pairs if a != b]
    counts = {(a[0], b[0]) for a, b in different if a and b and a[1:] == b[1:]}
    if len(counts) != 1 or not all(a and b and a[1:] == b[1:] for a, b in different):
        return None
    return next(iter(counts))


def _without_counters(names: Shapes) -> set[str]:
    return {name for name in names if not name.endswith("num_batches_tracked")}
