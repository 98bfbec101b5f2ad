"""A network in parts on several machines: device, edge and cloud.

Each tier runs some stages, answers the samples that exit there, and sends the live tensors of the
remaining ones to the next tier.
"""

from leenet_fx.tiers.chain import Chain, NextTier, TierPrediction
from leenet_fx.tiers.cuts import choose_stages, measure_stages
from leenet_fx.tiers.link import listen
from leenet_fx.tiers.server import TierServer
from leenet_fx.tiers.tier import Tier

__all__ = [
    "Chain",
    "NextTier",
    "Tier",
    "TierPrediction",
    "TierServer",
    "choose_stages",
    "listen",
    "measure_stages",
]
