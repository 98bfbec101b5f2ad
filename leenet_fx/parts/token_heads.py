"""Necks on tokens: local by convolution, global by attention (LGViT)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.exit_site import ExitSite
from leenet_fx.parts.necks import CONV_GAIN, Neck

MAX_PREFIX = 8
"""Largest number of tokens in front of the patches: of the class, of distillation, registers."""

HEAD_WIDTH = 16
"""Smallest number of channels of an attention head."""


class TokenNeck(Neck):
    """Local and global aggregation heads of LGViT (Xu et al. 2023), for vision transformers.

    Exits in front of `local_share` of the backbone's FLOPs have a local head (`LocalHead`), later
    ones a global head (`GlobalHead`): early features lack context that is local, late ones have
    it. Both read patches as a square grid, and the mean of the tokens in front of them.

    Args:
        site: features and position; the features must be one tensor of tokens (B, T, C), with at
            most 8 tokens in front of a square number of patches.
        width: channels of the head.
        local_share: share of the FLOPs up to which heads are local; 1 makes all local, 0 all
            global.
        kernel: side of the local heads' depthwise convolution.
        windows: cells along each side to which patches are averaged for global heads.

    Raises:
        InputError: an option is not in its range, or the features are no such tokens.
    """

    def __init__(
        self,
        site: ExitSite,
        width: int = 64,
        local_share: float = 0.6,
        kernel: int = 3,
        windows: int = 4,
    ) -> None:
        for name, value in (("width", width), ("kernel", kernel), ("windows", windows)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"{name} of an 'lgvit' branch must be a positive integer, got {value!r}."
                )
        if kernel % 2 == 0:
            raise InputError(f"kernel of an 'lgvit' branch must be odd, got {kernel}.")
        is_number = isinstance(local_share, (int, float)) and not isinstance(local_share, bool)
        if not is_number or not 0 <= local_share <= 1:
            raise InputError(
                f"local_share of an 'lgvit' branch must lie in [0, 1], got {local_share!r}."
            )
        side, prefix = token_grid(site)
        super().__init__(site, width)
        channels = site.features[0].channels
        self.side, self.prefix = side, prefix
        self.layers: nn.Module
        if site.share <= local_share:
            self.layers = LocalHead(channels, width, kernel)
        else:
            self.layers = GlobalHead(channels, width, min(windows, side))

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        return features

    def forward(self, *pooled: Tensor) -> Tensor:
        tokens = pooled[0]
        patches = tokens[:, self.prefix :]
        front = tokens[:, : self.prefix] if self.prefix else patches
        maps = patches.transpose(1, 2).unflatten(2, (self.side, self.side))
        outputs: Tensor = self.layers(maps, front.mean(1))
        return CONV_GAIN * outputs / math.sqrt(self.width)


class LocalHead(nn.Module):
    """A pointwise, a depthwise and a pointwise convolution, then the average, plus the front.

    Args:
        channels: of the tokens.
        width: of the output.
        kernel: side of the depthwise convolution.
    """

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.GELU()
        )
        self.local = nn.Sequential(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.GELU(),
        )
        self.mix = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.front = nn.Sequential(nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width))

    def forward(self, maps: Tensor, front: Tensor) -> Tensor:
        """Map patches (B, C, H, W) and the tokens in front of them (B, C) to (B, width)."""
        local = self.mix(self.local(self.expand(maps))).mean((2, 3))
        return F.relu(local + self.front(front))


class GlobalHead(nn.Module):
    """Self-attention of the front and of averaged patches, then the average.

    Args:
        channels: of the tokens.
        width: of the output.
        windows: cells along each side to which patches are averaged.
    """

    def __init__(self, channels: int, width: int, windows: int) -> None:
        super().__init__()
        self.windows = windows
        self.heads = math.gcd(width, max(1, width // HEAD_WIDTH))
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, width)
        self.key = nn.Linear(channels, width)
        self.value = nn.Linear(channels, width)
        self.output = nn.Sequential(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width))

    def forward(self, maps: Tensor, front: Tensor) -> Tensor:
        """Map patches (B, C, H, W) and the tokens in front of them (B, C) to (B, width)."""
        patches = F.adaptive_avg_pool2d(maps, self.windows).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([front.unsqueeze(1), patches], 1))
        query, key, value = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        means = attended.mean(2).flatten(1)
        return F.relu(self.output(means))


def token_grid(site: ExitSite) -> tuple[int, int]:
    """Return the side of the square of patches, and the number of tokens in front of it.

    Raises:
        InputError: the features are no tokens, or their number is no square after the first few.
    """
    shapes = [feature.shape for feature in site.features]
    if len(shapes) != 1 or len(shapes[0]) != 3 or site.features[0].channel_axis != 2:
        raise InputError(
            "An 'lgvit' branch reads the tokens (B, T, C) of a vision transformer, got "
            f"{shapes}: 'pool' and 'side' read any features."
        )
    count = shapes[0][1]
    side = math.isqrt(count)
    if count - side * side > MAX_PREFIX:
        raise InputError(
            f"An 'lgvit' branch reads a square of patches behind at most {MAX_PREFIX} other "
            f"tokens, got {count} tokens: 'pool' and 'side' read any number."
        )
    return side, count - side * side
