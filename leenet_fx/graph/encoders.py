"""torch's own stacks of layers, which are traced layer by layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from leenet_fx.graph.signature import replace_forward

_MARK = "_runs_layer_by_layer"


def run_layer_by_layer(root: nn.Module) -> None:
    """Let nn.TransformerEncoder call its layers without the control flow of its fast path.

    Its result is the same without a padding mask, for which torch may use nested tensors.

    Args:
        root: the module tree, modified in place.
    """
    for module in root.modules():
        if isinstance(module, nn.TransformerEncoder) and (
            type(module).forward is nn.TransformerEncoder.forward
        ):
            replace_forward(module, _encode)
            setattr(module, _MARK, True)


def runs_layer_by_layer(module: nn.Module) -> bool:
    """Return whether `run_layer_by_layer` has changed a module."""
    return _MARK in module.__dict__


def _encode(
    self: Any,
    src: Any,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Any:
    if src_key_padding_mask is not None:
        raise ValueError("nn.TransformerEncoder with a padding mask is not traced")
    causal = {} if is_causal is None else {"is_causal": is_causal}
    for layer in self.layers:
        src = layer(src, src_mask=mask, **causal)
    return src if self.norm is None else self.norm(src)
