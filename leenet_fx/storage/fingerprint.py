"""Fingerprints that identify the network on which exits were attached."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor, fx

from leenet_fx.digest import checksum, entries, weights_digest
from leenet_fx.errors import InputError
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


def backbone_digest(ee: EarlyExitModule, changed: Sequence[str] | None = None) -> str:
    """Return a digest of the weights that are those of the original model.

    Args:
        ee: the network.
        changed: names of the modules and entries that are not the original's; None takes
            `ee.spec.changed`.
    """
    changed = ee.spec.changed if changed is None else changed
    return weights_digest(
        (name, tensor)
        for name, tensor in sorted(ee.state_dict(keep_vars=True).items())
        if isinstance(tensor, Tensor) and not is_new(name, changed) and not tensor.is_meta
    )


def is_new(name: str, changed: Sequence[str]) -> bool:
    """Return whether an entry of the state dict differs from the original model's.

    New are the exits, and everything that was replaced or trained.

    Args:
        name: key of the state dict.
        changed: names of modules and of entries; "" is the whole backbone.
    """
    modules = tuple(f"{module}." if module else "" for module in changed)
    return name in changed or name.startswith(("exits.", *modules))


def changed_entries(ee: EarlyExitModule) -> tuple[str, ...]:
    """Return the names of the modules and entries of the backbone that are not the original's.

    They are `ee.spec.changed`, and all weights and buffers that were changed since `attach`, by
    whatever wrote to them.

    Args:
        ee: the network.

    Raises:
        InputError: it is not known what the original's weights were.
    """
    changed, checksums = ee.spec.changed, ee.spec.checksums
    if checksums is None:
        if "" in changed:
            return changed
        raise InputError(
            "Whether the backbone's weights are still those of the original model is not known, "
            "because this network was not built by attach: pass backbone=True, which saves them."
        )
    # Changes of a whole module are not recorded for buffers that are not in the state dict.
    covered = {name for name in ee.state_dict() if is_new(name, changed)}
    found = [
        name
        for name, value in entries(ee).items()
        if not name.startswith("exits.")
        and name not in covered
        and checksum(value) != checksums.get(name)
    ]
    return (*changed, *(name for name in found if name not in changed))
