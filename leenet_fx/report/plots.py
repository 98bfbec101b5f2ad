"""Pictures: a network with its exits, accuracy against cost, sample images per exit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leenet_fx.errors import DependencyError
from leenet_fx.registry import unknown_name
from leenet_fx.storage.files import write_atomically
from leenet_fx.tables import quantity

if TYPE_CHECKING:
    from torch import Tensor

    from leenet_fx.surgery.module import EarlyExitModule

# Okabe and Ito's colours, told apart under every common colour blindness and in grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"
MOST_LABELS = 16
LABEL_STEP = 0.26


def plot_network(ee: EarlyExitModule, path: Path) -> None:
    """Draws the network as blocks along its cumulative FLOPs, with the exits on it.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    spec = ee.spec
    figure, axes = pyplot().subplots(layout="constrained")
    exits = [
        (spec.profile.shares[at], f"exit {index}: {row.name}, {row.relative_flops:.3f}")
        for index, (at, row) in enumerate(zip(spec.placement.indices, ee.costs[:-1], strict=True))
    ]
    exits.append((1.0, f"final, {ee.costs[-1].relative_flops:.3f}"))
    draw_network(axes, spec.profile.shares, exits, width=10)
    axes.set(
        xlim=(0, 1.12),
        xlabel=f"share of the plain model's {quantity(spec.profile.flops)}FLOPs "
        "(FLOPs = 2 x MACs); numbers: block boundaries, each at its block's end",
        title=f"{spec.profile.model}, '{spec.placement.strategy}' placement",
    )
    save(figure, path)


def draw_network(
    axes: Any,
    shares: Sequence[float],
    exits: Sequence[tuple[float, str]],
    *,
    width: float,
    fontsize: float = 8,
    hang_from: float = 1.0,
) -> None:
    """Draws blocks along their cumulative FLOPs with a line for each exit; sets the figure's size.

    Args:
        axes: where to.
        shares: of the FLOPs, where each boundary is.
        exits: share of the FLOPs and label of each, the final classifier last. Labels are left out
            when there are too many.
        width: of the figure in inches.
        fontsize: of the labels.
        hang_from: exits behind this share hang below the blocks, with their labels to the left;
            where the width is small, labels to the right would run out of it.
    """
    for i, (start, end) in enumerate(pairwise([0.0, *shares, 1.0])):
        colour = "#cfd8e3" if i % 2 else "#e6ebf2"
        axes.barh(0, end - start, left=start, height=0.6, color=colour, edgecolor="white", lw=0.4)
        if end - start > fontsize / 40 / width:
            axes.text((start + end) / 2, 0, str(i), ha="center", va="center", fontsize=fontsize)
    labelled = len(exits) <= MOST_LABELS + 1
    standing = sum(at <= hang_from for at, _ in exits) if labelled else 1
    hanging = len(exits) - standing if labelled else 0
    top = 0.5 + LABEL_STEP * standing
    bottom = -0.35 - (0.2 + LABEL_STEP * hanging if hanging else 0)
    for index, (at, label) in enumerate(exits):
        up = at <= hang_from or not labelled
        # Each line stops before the next label on its side, so that no line crosses a label.
        if up:
            end = top - (LABEL_STEP * index if labelled else 0)
        else:
            end = -0.5 - LABEL_STEP * (index - standing + 1)
        final = index == len(exits) - 1
        colour = GREEN if final else ORANGE
        axes.plot([at, at], [-0.3 if up else 0.3, end], color=colour, lw=1.8)
        if labelled:
            axes.text(
                at + 0.005 if up else at - 0.012,
                end,
                label,
                ha="left" if up else "right",
                va="top" if up else "bottom",
                fontsize=fontsize,
            )
    axes.set(
        xticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0], ylim=(bottom, top + 0.1), yticks=[], xlim=(0, 1.012)
    )
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.figure.set_size_inches(width, 1.4 + 1.1 * (top - 0.35 - bottom))


def plot_tradeoff(
    points: Sequence[dict[str, Any]], backbone_accuracy: float, chosen: float, path: Path
) -> None:
    """Accuracy against relative FLOPs for several α.

    Args:
        points: records with `alpha`, `relative_flops`, `accuracy` and `random_accuracy`.
        plain_accuracy: the plain model's, drawn as the reference.
        chosen: the α to mark.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    points = sorted(points, key=lambda point: point["relative_flops"])
    cost = [point["relative_flops"] for point in points]
    for key, label, style, colour in (
        ("accuracy", "learned gates", "o-", BLUE),
        ("random_accuracy", "same shares at random", "s--", GREY),
    ):
        axes.plot(cost, [100 * p[key] for p in points], style, color=colour, label=label, ms=5)
    axes.plot([1.0], [100 * backbone_accuracy], "D", color=GREEN, label="plain model", ms=8)
    axes.axhline(100 * backbone_accuracy, color=GREEN, lw=0.8, alpha=0.6)
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
    plt = pyplot()
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
    pyplot().close(figure)
    write_atomically(path, buffer.getvalue())


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to memory.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise DependencyError("Plots need matplotlib: pip install 'leenet-fx[plot]'.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt
