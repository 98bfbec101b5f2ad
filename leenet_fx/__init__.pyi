"""Types of the lazily loaded public names; `__init__.py` says where each lives."""

from leenet_fx.data.splits import (
    Data as Data,
)
from leenet_fx.data.splits import (
    open_data as open_data,
)
from leenet_fx.data.transforms import (
    make_transform as make_transform,
)
from leenet_fx.errors import (
    DependencyError as DependencyError,
)
from leenet_fx.errors import (
    EarlyExitError as EarlyExitError,
)
from leenet_fx.errors import (
    InputError as InputError,
)
from leenet_fx.errors import (
    ModeError as ModeError,
)
from leenet_fx.errors import (
    PlacementError as PlacementError,
)
from leenet_fx.errors import (
    StorageError as StorageError,
)
from leenet_fx.errors import (
    TraceError as TraceError,
)
from leenet_fx.errors import (
    TrainingError as TrainingError,
)
from leenet_fx.errors import (
    UnknownNameError as UnknownNameError,
)
from leenet_fx.calibration.budgets import (
    set_budget as set_budget,
)
from leenet_fx.evaluation.compare import (
    Comparison as Comparison,
)
from leenet_fx.evaluation.compare import (
    Operating as Operating,
)
from leenet_fx.evaluation.compare import (
    Run as Run,
)
from leenet_fx.evaluation.compare import (
    Variant as Variant,
)
from leenet_fx.evaluation.compare import (
    compare as compare,
)
from leenet_fx.evaluation.compare import (
    frozen as frozen,
)
from leenet_fx.evaluation.evaluate import (
    ClassRow as ClassRow,
)
from leenet_fx.evaluation.evaluate import (
    Evaluation as Evaluation,
)
from leenet_fx.evaluation.evaluate import (
    Example as Example,
)
from leenet_fx.evaluation.evaluate import (
    Outlet as Outlet,
)
from leenet_fx.evaluation.evaluate import (
    Timing as Timing,
)
from leenet_fx.evaluation.evaluate import (
    evaluate as evaluate,
)
from leenet_fx.evaluation.sweep import (
    Point as Point,
)
from leenet_fx.evaluation.sweep import (
    Sweep as Sweep,
)
from leenet_fx.evaluation.sweep import (
    sweep as sweep,
)
from leenet_fx.graph.catalog import (
    create_model as create_model,
)
from leenet_fx.graph.catalog import (
    list_models as list_models,
)
from leenet_fx.methods.method import (
    Method as Method,
)
from leenet_fx.methods.method import (
    get_method as get_method,
)
from leenet_fx.methods.method import (
    list_methods as list_methods,
)
from leenet_fx.methods.method import (
    list_overrides as list_overrides,
)
from leenet_fx.methods.method import (
    register_method as register_method,
)
from leenet_fx.parts.necks import (
    Body as Body,
)
from leenet_fx.parts.branches import (
    Branch as Branch,
)
from leenet_fx.parts.branches import (
    get_branch as get_branch,
)
from leenet_fx.parts.branches import (
    list_branches as list_branches,
)
from leenet_fx.parts.branches import (
    register_branch as register_branch,
)
from leenet_fx.parts.gates import (
    Gate as Gate,
)
from leenet_fx.parts.gates import (
    get_gate as get_gate,
)
from leenet_fx.parts.gates import (
    list_gates as list_gates,
)
from leenet_fx.parts.gates import (
    register_gate as register_gate,
)
from leenet_fx.parts.heads import (
    Head as Head,
)
from leenet_fx.parts.heads import (
    get_head as get_head,
)
from leenet_fx.parts.heads import (
    list_heads as list_heads,
)
from leenet_fx.parts.heads import (
    register_head as register_head,
)
from leenet_fx.objectives.objective import (
    Objective as Objective,
)
from leenet_fx.objectives.objective import (
    Outputs as Outputs,
)
from leenet_fx.objectives.objective import (
    exit_log_probabilities as exit_log_probabilities,
)
from leenet_fx.objectives.objective import (
    exit_losses as exit_losses,
)
from leenet_fx.objectives.objective import (
    get_objective as get_objective,
)
from leenet_fx.objectives.objective import (
    leenet_loss as leenet_loss,
)
from leenet_fx.objectives.objective import (
    list_objectives as list_objectives,
)
from leenet_fx.objectives.objective import (
    register_objective as register_objective,
)
from leenet_fx.objectives.objective import (
    soft_probabilities as soft_probabilities,
)
from leenet_fx.policies.policy import (
    ClassMeanDistance as ClassMeanDistance,
)
from leenet_fx.policies.policy import (
    Dial as Dial,
)
from leenet_fx.policies.policy import (
    Entropy as Entropy,
)
from leenet_fx.policies.policy import (
    LearnedGate as LearnedGate,
)
from leenet_fx.policies.policy import (
    Margin as Margin,
)
from leenet_fx.policies.policy import (
    MaxProbability as MaxProbability,
)
from leenet_fx.policies.policy import (
    Patience as Patience,
)
from leenet_fx.policies.policy import (
    Policy as Policy,
)
from leenet_fx.policies.policy import (
    Shut as Shut,
)
from leenet_fx.policies.policy import (
    Vote as Vote,
)
from leenet_fx.policies.policy import (
    get_policy as get_policy,
)
from leenet_fx.policies.policy import (
    list_policies as list_policies,
)
from leenet_fx.policies.policy import (
    register_policy as register_policy,
)
from leenet_fx.methods.phases import (
    Step as Step,
)
from leenet_fx.methods.phases import (
    Turn as Turn,
)
from leenet_fx.methods.phases import (
    one_turn as one_turn,
)
from leenet_fx.parts.exit_site import (
    FeatureShape as FeatureShape,
)
from leenet_fx.parts.exit_site import (
    Site as Site,
)
from leenet_fx.calibration.solvers import (
    get_solver as get_solver,
)
from leenet_fx.calibration.solvers import (
    list_solvers as list_solvers,
)
from leenet_fx.calibration.solvers import (
    register_solver as register_solver,
)
from leenet_fx.storage.exits import (
    load as load,
)
from leenet_fx.storage.exits import (
    save as save,
)
from leenet_fx.surgery.attach import (
    attach as attach,
)
from leenet_fx.runtime.compile import (
    compile as compile,
)
from leenet_fx.cost.cost_table import (
    CostRow as CostRow,
)
from leenet_fx.cost.cost_table import (
    CostTable as CostTable,
)
from leenet_fx.cost.latency import (
    Latency as Latency,
)
from leenet_fx.surgery.module import (
    EarlyExitModule as EarlyExitModule,
)
from leenet_fx.surgery.module import (
    ExitOutputs as ExitOutputs,
)
from leenet_fx.surgery.module import (
    Prediction as Prediction,
)
from leenet_fx.runtime.streaming import (
    predict_stream as predict_stream,
)
from leenet_fx.cost.measure import (
    profile as profile,
)
from leenet_fx.features.feature_cache import (
    FeatureCache as FeatureCache,
)
from leenet_fx.features.feature_cache import (
    cache_features as cache_features,
)
from leenet_fx.training.fit import (
    FitResult as FitResult,
)
from leenet_fx.training.fit import (
    fit as fit,
)

__version__: str
