"""Fingerprints that identify the network on which exits were attached."""

from __future__ import annotations

import hashlib

from torch import Tensor, fx

from leenet_fx.digest import weights_digest
from leenet_fx.runtime.stages import collecting_node, is_exit
from leenet_fx.surgery.module import EarlyExitModule


def fingerprint(ee: EarlyExitModule) -> list[dict[str, str]]:
    """Return a digest of the backbone's operations for each segment between exits, in order.

    Two networks with equal fingerprints run the same operations on parameters of the same shapes.

    Returns:
        For each exit and for the final classifier, `up_to`, the block or "final" where the segment
        ends, and `digest`, 16 hexadecimal digits.
    """
    ends = [*ee.spec.placement.names, "final"]
    digests = [hashlib.sha256() for _ in ends]
    output = next(node for node in reversed(ee.graph.nodes) if node.op == "output")
    collect = collecting_node(ee.graph)
    # The output collects the exits; it is no operation of the backbone.
    skipped = {output, collect} | {
        node for node in collect.all_input_nodes if node.op == "get_attr" and len(node.users) == 1
    }
    position: dict[fx.Node, int] = {}
    segment = 0
    for node in ee.graph.nodes:
        if is_exit(node):
            segment += 1
            continue
        if node in skipped:
            continue
        position[node] = len(position)
        sources = [position[source] for source in node.all_input_nodes if source in position]
        target = getattr(node.target, "__name__", str(node.target))
        described = [node.op, target, str(sources)]
        if node.op == "call_module":
            module = ee.get_submodule(str(node.target))
            described.append(type(module).__name__)
            described += [f"{name}{tuple(p.shape)}" for name, p in module.named_parameters()]
        digests[min(segment, len(ends) - 1)].update("|".join(described).encode())
    return [
        {"up_to": end, "digest": digest.hexdigest()[:16]}
        for end, digest in zip(ends, digests, strict=True)
    ]


def backbone_digest(ee: EarlyExitModule) -> str:
    """Return a digest of the weights that are those of the original model."""
    return weights_digest(
        (name, tensor)
        for name, tensor in sorted(ee.state_dict(keep_vars=True).items())
        if isinstance(tensor, Tensor) and not is_new(ee, name) and not tensor.is_meta
    )


def is_new(ee: EarlyExitModule, name: str) -> bool:
    """Return whether an entry of the state dict differs from the original model's.

    New are the exits, and every module that was replaced or trained.

    Args:
        ee: the network.
        name: key of its state dict.
    """
    changed = tuple(f"{module}." if module else "" for module in ee.spec.changed)
    return name.startswith(("exits.", *changed))
