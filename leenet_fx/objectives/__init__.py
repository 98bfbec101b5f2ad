"""Training objectives of exits, gates and the final classifier.

Notation. N exits precede the final classifier; exit i = 0..N−1, and the final classifier has index
N. At index i, pᵢ = softmax(ŷᵢ), CEᵢ = −log pᵢ[y], and cᵢ is the cost of exiting there.
gᵢ = sigmoid(zᵢ) is the probability that gate i opens, g_N = 1, and qᵢ = gᵢ · Π_{j<i}(1−gⱼ) the
probability of exiting at i. A mixture is the expectation over exits for a sample that reaches exit
i: Ŷᵢ = gᵢ·pᵢ + (1−gᵢ)·Ŷᵢ₊₁, Ŷ_N = p_N, and likewise Cᵢ for costs.
"""

from leenet_fx.objectives.base import (
    BatchOutputs,
    Objective,
    SumOfObjectives,
    get_objective,
    list_objectives,
    register_objective,
)
from leenet_fx.objectives.calexnet import CalexNet
from leenet_fx.objectives.cross_entropy import (
    BoostNet,
    BranchyNet,
    DepthWeighted,
    FinalClassifier,
    ShallowDeep,
    SumOfExits,
)
from leenet_fx.objectives.distillation import Distillation
from leenet_fx.objectives.eenets import EENets
from leenet_fx.objectives.functional import (
    exit_log_probabilities,
    exit_losses,
    leenet_loss,
    mixture_costs,
    mixture_log_probabilities,
    soft_probabilities,
)
from leenet_fx.objectives.jei_dnn import JEIDNNGates, JEIDNNHeads
from leenet_fx.objectives.mixture import DifferentiableBranching, LEENet, PTEEnet

__all__ = [
    "BatchOutputs",
    "BoostNet",
    "BranchyNet",
    "CalexNet",
    "DepthWeighted",
    "DifferentiableBranching",
    "Distillation",
    "EENets",
    "FinalClassifier",
    "JEIDNNGates",
    "JEIDNNHeads",
    "LEENet",
    "Objective",
    "PTEEnet",
    "ShallowDeep",
    "SumOfExits",
    "SumOfObjectives",
    "exit_log_probabilities",
    "exit_losses",
    "get_objective",
    "leenet_loss",
    "list_objectives",
    "mixture_costs",
    "mixture_log_probabilities",
    "register_objective",
    "soft_probabilities",
]
