"""Image files: a network with its exits, accuracy against cost, sample images of each exit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leenet_fx.errors import DependencyError
from leenet_fx.registry import unknown_name
from leenet_fx.report.labels import label_points
from leenet_fx.storage.files import write_atomically
from leenet_fx.tables import quantity

if TYPE_CHECKING:
    from torch import Tensor

    from leenet_fx.surgery.module import EarlyExitModule

# Okabe and Ito's colours, distinguishable with colour blindness and in grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"

MOST_LABELS = 16
"""Number of exits above which exits are not labelled."""

LABEL_STEP = 0.26
"""Vertical distance of labels, relative to the bar of blocks."""

COLUMNS = 14
"""Number of sample images per exit."""


def plot_network(ee: EarlyExitModule, path: Path) -> None:
    """Plot the network as blocks along its cumulative FLOPs, with its exits.

    Args:
        ee: the network.
        path: image file to write.

    Raises:
        DependencyError: matplotlib is not installed.
        UnknownNameError: matplotlib does not write such image files.
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
        xlabel=f"share of the backbone's {quantity(spec.profile.flops)}FLOPs "
        "(FLOPs = 2 x MACs); numbers: blocks",
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
    below_from: float = 1.0,
) -> None:
    """Draw blocks along their cumulative FLOPs with a line per exit, and set the figure's size.

    Args:
        axes: axes to draw on.
        shares: share of the FLOPs at each block boundary.
        exits: share of the FLOPs and label of each exit, the final classifier last. Labels are not
            drawn if there are too many.
        width: width of the figure in inches.
        fontsize: font size of the labels.
        below_from: exits after this share are drawn below the blocks, with their labels to the
            left; in a narrow figure, labels to the right would not fit.
    """
    for i, (start, end) in enumerate(pairwise([0.0, *shares, 1.0])):
        colour = "#cfd8e3" if i % 2 else "#e6ebf2"
        axes.barh(0, end - start, left=start, height=0.6, color=colour, edgecolor="white", lw=0.4)
        if end - start > fontsize / 40 / width:
            axes.text((start + end) / 2, 0, str(i), ha="center", va="center", fontsize=fontsize)
    labelled = len(exits) <= MOST_LABELS + 1
    above = sum(at <= below_from for at, _ in exits) if labelled else 1
    below = len(exits) - above if labelled else 0
    top = 0.5 + LABEL_STEP * above
    bottom = -0.35 - (0.2 + LABEL_STEP * below if below else 0)
    for index, (at, label) in enumerate(exits):
        is_above = at <= below_from or not labelled
        # Each line ends before the next label on its side, so that no line crosses a label.
        if is_above:
            end = top - (LABEL_STEP * index if labelled else 0)
        else:
            end = -0.5 - LABEL_STEP * (index - above + 1)
        final = index == len(exits) - 1
        colour = GREEN if final else ORANGE
        axes.plot([at, at], [-0.3 if is_above else 0.3, end], color=colour, lw=1.8)
        if labelled:
            axes.text(
                at + 0.005 if is_above else at - 0.012,
                end,
                label,
                ha="left" if is_above else "right",
                va="top" if is_above else "bottom",
                fontsize=fontsize,
            )
    axes.set(
        xticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0], ylim=(bottom, top + 0.1), yticks=[], xlim=(0, 1.012)
    )
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.figure.set_size_inches(width, 1.4 + 1.1 * (top - 0.35 - bottom))


def plot_tradeoff(
    points: Sequence[dict[str, Any]], backbone_accuracy: float, selected: float, path: Path
) -> None:
    """Plot accuracy against relative FLOPs for several α.

    Args:
        points: records with `alpha`, `relative_flops`, `accuracy` and `random_accuracy`.
        backbone_accuracy: accuracy of the backbone, drawn as the reference.
        selected: the α to mark.
        path: image file to write.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    points = sorted(points, key=lambda point: point["relative_flops"])
    flops = [point["relative_flops"] for point in points]
    for key, label, style, colour in (
        ("accuracy", "learned gates", "o-", BLUE),
        ("random_accuracy", "random exiting at the same exit rates", "s--", GREY),
    ):
        axes.plot(flops, [100 * p[key] for p in points], style, color=colour, label=label, ms=5)
    axes.plot([1.0], [100 * backbone_accuracy], "D", color=GREEN, label="backbone", ms=8)
    axes.axhline(100 * backbone_accuracy, color=GREEN, lw=0.8, alpha=0.6)
    chosen = [index for index, point in enumerate(points) if point["alpha"] == selected]
    for index in chosen:
        axes.plot(
            [flops[index]],
            [100 * points[index]["accuracy"]],
            "o",
            ms=12,
            mfc="none",
            mec=ORANGE,
            mew=2,
            label="selected on the validation split",
        )
    axes.set(
        xlabel="mean FLOPs, relative to the backbone", ylabel="accuracy on the validation split, %"
    )
    axes.margins(0.06, 0.1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    others = [index for index in range(len(points)) if index not in chosen]
    label_points(
        axes,
        [(point["relative_flops"], 100 * point["accuracy"]) for point in points],
        [f"α={point['alpha']:g}" for point in points],
        order=(*chosen, *others),
        style={index: {"color": ORANGE, "fontweight": "bold"} for index in chosen},
    )
    save(figure, path)


def plot_samples(
    images: Tensor, exit_index: Tensor, correct: Tensor, names: Sequence[str], path: Path
) -> None:
    """Plot sample images of each exit, one row per exit; wrong predictions are framed.

    Args:
        images: (n, 1, H, W).
        exit_index: (n,) exit taken by each image.
        correct: (n,) whether its prediction is correct.
        names: names of the exits and of the final classifier.
        path: image file to write.
    """
    plt = pyplot()
    figure, grid = plt.subplots(
        len(names), COLUMNS, figsize=(COLUMNS * 0.72, len(names) * 0.82 + 0.5), squeeze=False
    )
    for exit_number, name in enumerate(names):
        indices = (exit_index == exit_number).nonzero().squeeze(1)
        for column, axes in enumerate(grid[exit_number]):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column >= len(indices):
                continue
            index = int(indices[column])
            axes.imshow(images[index, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            if not correct[index]:
                axes.spines[:].set(visible=True, color=ORANGE, linewidth=3)
        grid[exit_number][0].set_ylabel(
            f"{name}\n({len(indices)})", rotation=0, ha="right", va="center", fontsize=8
        )
    figure.suptitle("Samples of each exit (count); framed: wrong prediction", fontsize=10)
    figure.subplots_adjust(left=0.13, right=0.99, top=0.88, bottom=0.02, wspace=0.08, hspace=0.08)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a figure atomically, in the format of the path's suffix, and close it.

    Raises:
        UnknownNameError: matplotlib does not write this format.
        StorageError: the file cannot be written.
    """
    buffer = io.BytesIO()
    file_format = path.suffix.lstrip(".") or "png"
    supported = figure.canvas.get_supported_filetypes()
    if file_format not in supported:
        raise unknown_name("image format", file_format, supported)
    figure.savefig(buffer, format=file_format, dpi=130)
    pyplot().close(figure)
    write_atomically(path, buffer.getvalue())


def pyplot() -> Any:
    """Return matplotlib.pyplot with a backend that needs no display.

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
