"""Where the channels of a tensor are: NCHW, NHWC or tokens."""

from __future__ import annotations

from torch import fx, nn

from leenet_fx.graph.node_costs import NodeCosts

_REACH = 12
"""How many shape-keeping operations to look past for a layer that tells the layout."""


def channel_axis(node: fx.Node, shape: tuple[int, ...], root: nn.Module, costs: NodeCosts) -> int:
    """The axis of a batch-first tensor that holds its channels.

    The layers that read the tensor decide: a convolution, BatchNorm or GroupNorm takes axis 1, a
    Linear or LayerNorm the last, if its width is that axis' size. Where none does, rank decides:
    (B, C) and (B, tokens, C) end in channels; of rank 4, the axis
    apart from two equal ones; else 1.
    """
    rank = len(shape)
    if rank == 2:
        return 1
    frontier = [node]
    for _ in range(_REACH):
        following: list[fx.Node] = []
        for user in (user for at in frontier for user in at.users):
            axis = _read_at(user, shape, root)
            if axis is not None:
                return axis
            if costs.shape(user) == shape and not _mixes_axes(user):
                following.append(user)
        frontier = following
    if rank == 4 and shape[1] == shape[2] != shape[3]:
        return 3
    return rank - 1 if rank == 3 else 1


def _read_at(user: fx.Node, shape: tuple[int, ...], root: nn.Module) -> int | None:
    if user.op != "call_module":
        name = getattr(user.target, "__name__", "").partition(".")[0]
        if name.startswith("conv") or name == "batch_norm":
            return 1
        return len(shape) - 1 if name in ("layer_norm", "linear") else None
    module = root.get_submodule(str(user.target))
    rank = len(shape)
    width, axis = None, 1
    if isinstance(module, nn.modules.conv._ConvNd):
        width = module.in_channels
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        width = module.num_features
    elif isinstance(module, nn.GroupNorm):
        width = module.num_channels
    elif isinstance(module, nn.Linear):
        width, axis = module.in_features, rank - 1
    elif isinstance(module, nn.LayerNorm):
        width, axis = module.normalized_shape[-1], 1 if "2d" in type(module).__name__ else rank - 1
    elif isinstance(module, (nn.modules.pooling._AdaptiveAvgPoolNd, nn.AvgPool2d, nn.MaxPool2d)):
        return 1
    return axis if width == shape[axis] else None


def _mixes_axes(user: fx.Node) -> bool:
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
    return any(word in name for word in ("permute", "transpose", "view", "reshape", "movedim"))
