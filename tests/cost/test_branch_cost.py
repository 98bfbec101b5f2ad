"""Costs of branches, by hand."""

from networks import images, tiny

import leenet_fx


def test_branches_that_share_their_layer():
    options = {"head": "projection"}
    example = images(1, 3, 16, 16)
    ee = leenet_fx.attach(tiny(), "every", example_inputs=example, branch_options=options)
    assert ee.costs[-1].flops == ee.costs.backbone.flops + 4 * 2 * 128 * 6
    assert ee.costs[-1].params == ee.costs.backbone.params + 4 * 129 * 6
