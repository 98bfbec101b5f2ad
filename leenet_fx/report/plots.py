"""Pictures: a network with its exits, accuracy against cost, sample images per exit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leenet_fx.errors import DependencyError
from leenet_fx.storage.files import write_atomically
from leenet_fx.text import quantity
from placement.registry import unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from leenet_fx.surgery.model import EarlyExitModule

# Okabe and Ito's colours, told apart under every common colour blindness and in grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
MOST_LABELS = 16


def plot_network(ee: EarlyExitModule, path: Path) -> None:
    """Draws the network as blocks along its cumulative FLOPs, with the exits on it.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    plt = _pyplot()
    spec = ee.spec
    shares = [0.0, *spec.profile.shares, 1.0]
    labelled = ee.num_exits <= MOST_LABELS
    top = 0.5 + 0.26 * (ee.num_exits + 1 if labelled else 1)
    figure, axes = plt.subplots(figsize=(10, 1.4 + 1.1 * top), layout="constrained")
    for i, (start, end) in enumerate(pairwise(shares)):
        colour = "#cfd8e3" if i % 2 else "#e6ebf2"
        axes.barh(0, end - start, left=start, height=0.6, color=colour, edgecolor="white")
        if end - start > 0.02:
            axes.text((start + end) / 2, 0, str(i), ha="center", va="center", fontsize=8)
    for index, row in enumerate(ee.costs):
        last = index == ee.num_exits
        at = 1.0 if last else spec.profile.shares[spec.placement.indices[index]]
        # Each line is shorter than the one before, so that no line crosses a label.
        height = top - 0.26 * index if labelled else top
        colour = GREEN if last else ORANGE
        axes.plot([at, at], [-0.3, height], color=colour, lw=1.8)
        if labelled:
            title = "final" if last else f"exit {index}: {row.name}"
            axes.text(
                at + 0.005,
                height,
                f"{title}, {row.relative_flops:.3f}",
                va="top",
                fontsize=8,
                color=colour,
            )
    axes.set(
        xlim=(0, 1.12),
        xticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0],
        ylim=(-0.35, top + 0.1),
        yticks=[],
        xlabel=f"share of the plain model's {quantity(spec.profile.flops)}FLOPs "
        "(FLOPs = 2 x MACs); numbers: block boundaries, each at its block's end",
        title=f"{spec.profile.model}, '{spec.placement.strategy}' placement",
    )
    axes.spines[["top", "left", "right"]].set_visible(False)
    save(figure, path)


def plot_tradeoff(
    points: Sequence[dict[str, Any]], plain_accuracy: float, chosen: float, path: Path
) -> None:
    """Accuracy against relative FLOPs for several α.

    Args:
        points: records with `alpha`, `relative_flops`, `accuracy` and `random_accuracy`.
        plain_accuracy: the plain model's, drawn as the reference.
        chosen: the α to mark.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    points = sorted(points, key=lambda point: point["relative_flops"])
    cost = [point["relative_flops"] for point in points]
    for key, label, style, colour in (
        ("accuracy", "learned gates", "o-", BLUE),
        ("random_accuracy", "same shares at random", "s--", GREY),
    ):
        axes.plot(cost, [100 * p[key] for p in points], style, color=colour, label=label, ms=5)
    axes.plot([1.0], [100 * plain_accuracy], "D", color=GREEN, label="plain model", ms=8)
    axes.axhline(100 * plain_accuracy, color=GREEN, lw=0.8, alpha=0.6)
    for turn, point in enumerate(points):
        picked = point["alpha"] == chosen
        axes.annotate(
            f"α={point['alpha']:g}",
            (point["relative_flops"], 100 * point["accuracy"]),
            textcoords="offset points",
            xytext=(5, -11) if turn % 2 else (-8, 9),
            fontsize=8,
            color=ORANGE if picked else "black",
            fontweight="bold" if picked else "normal",
        )
        if picked:
            axes.plot(
                [point["relative_flops"]],
                [100 * point["accuracy"]],
                "o",
                ms=12,
                mfc="none",
                mec=ORANGE,
                mew=2,
                label="chosen on validation images",
            )
    axes.set(
        xlabel="mean FLOPs, relative to the plain model", ylabel="accuracy on validation images, %"
    )
    axes.margins(0.06, 0.1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    save(figure, path)


def plot_strip(
    images: Tensor, exit_index: Tensor, right: Tensor, names: Sequence[str], path: Path
) -> None:
    """Sample images that left at each exit, one row an exit; wrong answers are framed.

    Args:
        images: (n, 1, H, W).
        exit_index: (n,) where each left.
        right: (n,) whether its answer was right.
        names: of the outlets.
    """
    plt = _pyplot()
    columns = 14
    figure, grid = plt.subplots(
        len(names), columns, figsize=(columns * 0.72, len(names) * 0.82 + 0.5), squeeze=False
    )
    for outlet, name in enumerate(names):
        here = (exit_index == outlet).nonzero().squeeze(1)
        for column, axes in enumerate(grid[outlet]):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column >= len(here):
                continue
            index = int(here[column])
            axes.imshow(images[index, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            if not right[index]:
                axes.spines[:].set(visible=True, color=ORANGE, linewidth=3)
        grid[outlet][0].set_ylabel(
            f"{name}\n({len(here)})", rotation=0, ha="right", va="center", fontsize=8
        )
    figure.suptitle("Where images leave (count); framed: answered wrongly", fontsize=10)
    figure.subplots_adjust(left=0.13, right=0.99, top=0.88, bottom=0.02, wspace=0.08, hspace=0.08)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes a figure whole or not at all, and closes it."""
    import io

    buffer = io.BytesIO()
    kind = path.suffix.lstrip(".") or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise unknown_name("picture format", kind, known)
    figure.savefig(buffer, format=kind, dpi=130)
    _pyplot().close(figure)
    write_atomically(path, buffer.getvalue())


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise DependencyError("Plots need matplotlib: pip install 'leenet-fx[plot]'.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
