"""Labels stand nearest to the point that they name."""

import math
import random

import pytest

from leenet_fx.report.labels import label_points
from leenet_fx.report.plots import pyplot


@pytest.fixture(params=range(4))
def drawn(request):
    generator = random.Random(request.param)
    xs = sorted(generator.random() for _ in range(12))
    points = [(x, 80 + 10 * x**0.3 + generator.random() * request.param) for x in xs]
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(4.8, 4), layout="constrained")
    axes.plot(*zip(*points, strict=True), "o-")
    axes.margins(0.12)
    yield axes, points
    plt.close(figure)


def test_labels_are_nearest_to_their_point_and_do_not_overlap(drawn):
    axes, points = drawn
    labelled = label_points(axes, points, [f"α={x:.2f}" for x, _ in points])
    assert 2 <= len(labelled) <= len(points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [f"α={points[i][0]:.2f}" for i in labelled]
    pixels = axes.transData.transform(points)
    for place, box in zip(labelled, boxes, strict=True):

        def distance(index, box=box):
            x, y = pixels[index]
            return math.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0))

        assert min(range(len(points)), key=distance) == place
    for index, box in enumerate(boxes):
        assert axes.bbox.x0 < box.x0
        assert box.x1 < axes.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:index])
