"""A comparison made by hand, and the SVG figures of a page."""

import re
from xml.etree import ElementTree

from leenet_fx.evaluation.comparison import Comparison
from leenet_fx.evaluation.frontier import FrontierPoint, MethodRun


def comparison(seeds=2, labels=("<b>best</b>", "b", "c", "d", "e", "f", "no points"), **fields):
    """Frontiers one below the other; the last method has no operating point."""
    runs = []
    for place, label in enumerate(labels):
        for seed in range(seeds):
            drop = 0.004 * place + 0.002 * seed
            points = tuple(
                FrontierPoint(b, 0.9 - (1 - b) ** 2 - drop, b, (1 - b, b)) for b in (0.9, 0.4, 0.7)
            )
            if label == "no points":
                points = ()
            runs.append(
                MethodRun(label, "ztw", seed, "threshold", 0.9, ("blocks.0",), 1.25, points, "")
            )
    return Comparison("TinyNet", 0.9, 400, 5, tuple(runs), **fields)


def drawings(text):
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]


def drawn_words(svg):
    return [
        "".join(node.itertext()).strip() for node in svg.iter("{http://www.w3.org/2000/svg}text")
    ]
