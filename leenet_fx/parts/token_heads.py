"""Necks on tokens: local by convolution, global by attention (LGViT)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leenet_fx.errors import InputError
from leenet_fx.parts.batch_norm import BatchNorm1d, BatchNorm2d
from leenet_fx.parts.exit_site import ExitSite
from leenet_fx.parts.necks import CONV_GAIN, Neck
from leenet_fx.parts.whole_calls import checked_length

HEAD_WIDTH = 16
"""Smallest number of channels of an attention head."""


class TokenNeck(Neck):
    """Local and global aggregation heads of LGViT (Xu et al. 2023), for vision transformers.

    Exits in front of `local_share` of the backbone's FLOPs have a local head (`LocalHead`), later
    ones a global head (`GlobalHead`): early features lack context that is local, late ones have
    it. Both read patches as a map, and the mean of the tokens in front of them.

    Args:
        site: features and position; the features must be one tensor of tokens (B, T, C): those of
            a map, row by row, with others in front.
        width: channels of the head.
        local_share: share of the FLOPs up to which heads are local; 1 makes all local, 0 all
            global.
        kernel: side of the local heads' depthwise convolution.
        windows: cells along each side to which patches are averaged for global heads.
        grid: height and width of the map; None takes those of the map that the network makes its
            tokens of, such as a patch embedding by convolution.

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
        grid: tuple[int, int] | None = None,
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
        height, width_of_map = patch_grid(site, grid)
        super().__init__(site, width)
        channels = site.features[0].channels
        self.grid = height, width_of_map
        self.prefix = site.features[0].shape[1] - height * width_of_map
        self.layers: nn.Module
        if site.share <= local_share:
            self.layers = LocalHead(channels, width, kernel)
        else:
            cells = min(windows, height), min(windows, width_of_map)
            self.layers = GlobalHead(channels, width, cells)

    def pool(self, *features: Tensor) -> tuple[Tensor, ...]:
        count = self.site.features[0].shape[1]
        return (checked_length(features[0], count, "An 'lgvit'", "tokens"),)

    def forward(self, *pooled: Tensor) -> Tensor:
        tokens = pooled[0]
        patches = tokens[:, self.prefix :]
        front = tokens[:, : self.prefix] if self.prefix else patches
        maps = patches.transpose(1, 2).unflatten(2, self.grid)
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
            nn.Conv2d(channels, width, 1, bias=False), BatchNorm2d(width), nn.GELU()
        )
        self.local = nn.Sequential(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False),
            BatchNorm2d(width),
            nn.GELU(),
        )
        self.mix = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), BatchNorm2d(width))
        self.front = nn.Sequential(nn.Linear(channels, width, bias=False), BatchNorm1d(width))

    def forward(self, maps: Tensor, front: Tensor) -> Tensor:
        """Map patches (B, C, H, W) and the tokens in front of them (B, C) to (B, width)."""
        local = self.mix(self.local(self.expand(maps))).mean((2, 3))
        return F.relu(local + self.front(front))


class GlobalHead(nn.Module):
    """Self-attention of the front and of averaged patches, then the average.

    Args:
        channels: of the tokens.
        width: of the output.
        windows: height and width of the map to which patches are averaged.
    """

    def __init__(self, channels: int, width: int, windows: tuple[int, int]) -> None:
        super().__init__()
        self.windows = windows
        self.heads = math.gcd(width, max(1, width // HEAD_WIDTH))
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, width)
        self.key = nn.Linear(channels, width)
        self.value = nn.Linear(channels, width)
        self.output = nn.Sequential(nn.Linear(width, width, bias=False), BatchNorm1d(width))

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


def patch_grid(site: ExitSite, grid: object = None) -> tuple[int, int]:
    """Return height and width of the map of patches.

    Args:
        site: features and position.
        grid: height and width as given; None takes the network's.

    Raises:
        InputError: the features are no tokens, there is no such map, or it has more cells than
            there are tokens.
    """
    shapes = [feature.shape for feature in site.features]
    if len(shapes) != 1 or len(shapes[0]) != 3 or site.features[0].channel_axis != 2:
        raise InputError(
            "An 'lgvit' branch reads the tokens (B, T, C) of a vision transformer, got "
            f"{shapes}: 'pool' and 'side' read any features."
        )
    count = shapes[0][1]
    found = site.features[0].grid if grid is None else grid
    if found is None:
        raise InputError(
            f"An 'lgvit' branch reads a map of patches, and the network makes its {count} tokens "
            "of none: pass branch_options={'grid': [height, width]}; 'pool' and 'side' read any "
            "tokens."
        )
    sizes = list(found) if isinstance(found, (list, tuple)) else []
    if len(sizes) != 2 or any(type(n) is not int or n < 1 for n in sizes):
        raise InputError(
            f"grid of an 'lgvit' branch must be [height, width], positive integers, got {grid!r}."
        )
    if sizes[0] * sizes[1] > count:
        raise InputError(
            f"grid of an 'lgvit' branch has {sizes[0]} x {sizes[1]} patches, and there are {count} "
            "tokens."
        )
    return sizes[0], sizes[1]
