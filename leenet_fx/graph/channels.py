"""The axis of a tensor that holds the channels: NCHW, NHWC or tokens."""

from __future__ import annotations

from torch import fx, nn

from leenet_fx.graph.node_costs import NodeCosts

_MAX_DISTANCE = 12
"""Number of shape-preserving operations searched for a layer that determines the layout."""

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_POOLS = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AvgPool2d, nn.MaxPool2d),
)


def channel_axis(node: fx.Node, shape: tuple[int, ...], root: nn.Module, costs: NodeCosts) -> int:
    """Return the axis of a batch-first tensor that holds its channels.

    The layers that read the tensor determine the axis: a convolution, BatchNorm or GroupNorm reads
    channels at axis 1, a Linear or LayerNorm at the last axis, if its width equals that axis' size.
    Without such a layer, the rank determines it: the last axis of (B, C) and (B, tokens, C); of
    rank 4, the axis other than two equal ones; else 1.

    Args:
        node: node that returns the tensor.
        shape: its shape for one image, batch axis included.
        root: module tree of the graph.
        costs: shapes of the other nodes.
    """
    rank = len(shape)
    if rank == 2:
        return 1
    frontier = [node]
    for _ in range(_MAX_DISTANCE):
        following: list[fx.Node] = []
        for user in (user for current in frontier for user in current.users):
            axis = _axis_read_by(user, shape, root)
            if axis is not None:
                return axis
            if costs.shape(user) == shape and not _changes_axes(user):
                following.append(user)
        frontier = following
    if rank == 4 and shape[1] == shape[2] != shape[3]:
        return 3
    return rank - 1 if rank == 3 else 1


def _axis_read_by(user: fx.Node, shape: tuple[int, ...], root: nn.Module) -> int | None:
    if user.op != "call_module":
        name = getattr(user.target, "__name__", "").partition(".")[0]
        if name.startswith("conv") or name == "batch_norm":
            return 1
        return len(shape) - 1 if name in ("layer_norm", "linear") else None
    module = root.get_submodule(str(user.target))
    rank = len(shape)
    width, axis = None, 1
    if isinstance(module, _CONVOLUTIONS):
        width = module.in_channels
    elif isinstance(module, _NORMS):
        width = module.num_features
    elif isinstance(module, nn.GroupNorm):
        width = module.num_channels
    elif isinstance(module, nn.Linear):
        width, axis = module.in_features, rank - 1
    elif isinstance(module, nn.LayerNorm):
        width, axis = module.normalized_shape[-1], 1 if "2d" in type(module).__name__ else rank - 1
    elif isinstance(module, _POOLS):
        return 1
    return axis if width == shape[axis] else None


def _changes_axes(user: fx.Node) -> bool:
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
    return any(word in name for word in ("permute", "transpose", "view", "reshape", "movedim"))
