"""A frozen backbone whose weights are shared out among processes (PyTorch's FSDP)."""

from __future__ import annotations

from collections import Counter
from operator import attrgetter

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from leenet_fx.errors import InputError
from leenet_fx.surgery.module import EarlyExitModule


def shard_backbone(
    ee: EarlyExitModule, mesh: DeviceMesh | None = None, final: nn.Module | None = None
) -> list[str]:
    """Shard the layers of a frozen backbone in place; each is gathered while it runs.

    The exits and a final classifier that is trained stay whole on every process, and so do weights
    that the graph reads outside of a layer, such as position embeddings.

    Args:
        ee: the network, on the device of this process.
        mesh: of the processes; None takes all.
        final: the final classifier, if it is trained.

    Returns:
        Names of the sharded layers.

    Raises:
        InputError: no layer can be sharded.
    """
    called = {str(node.target) for node in ee.graph.nodes if node.op == "call_module"}
    layers = {name: ee.get_submodule(name) for name in called if name.split(".")[0] != "exits"}
    owners = Counter(id(p) for _, p in ee.named_parameters(remove_duplicate=False))
    kept = [*ee.exits.parameters(), *(() if final is None else final.parameters())]
    read = [attrgetter(str(n.target))(ee) for n in ee.graph.nodes if n.op == "get_attr"]
    whole = {id(value) for value in (*kept, *read)}
    sharded = []
    for name, layer in layers.items():
        own = {id(p) for p in layer.parameters()}
        if own and not own & whole and all(owners[key] == 1 for key in own):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            sharded.append(name)
    if not sharded:
        raise InputError(
            "strategy='fsdp' shards the layers that the graph calls, and this one calls none with "
            "weights of its own (networks captured by torch.export have no layers): pass "
            "strategy='ddp'."
        )
    return sorted(sharded)
