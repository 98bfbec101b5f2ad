"""The public names; `__init__.py` loads them from here when they are first used."""

from .calibration.budgets import set_budget as set_budget
from .calibration.calibrate import calibrate as calibrate
from .cost.measure import profile as profile
from .data.splits import open_data as open_data
from .data.transforms import make_transform as make_transform
from .errors import DependencyError as DependencyError
from .errors import EarlyExitError as EarlyExitError
from .errors import InputError as InputError
from .errors import ModeError as ModeError
from .errors import PlacementError as PlacementError
from .errors import StorageError as StorageError
from .errors import TraceError as TraceError
from .errors import TrainingError as TrainingError
from .errors import UnknownNameError as UnknownNameError
from .evaluation.compare import compare as compare
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.sweep import sweep as sweep
from .features.feature_cache import cache_features as cache_features
from .graph.catalog import create_model as create_model
from .graph.catalog import list_models as list_models
from .methods.method import Method as Method
from .methods.method import get_method as get_method
from .methods.method import list_methods as list_methods
from .methods.method import register_method as register_method
from .policies import ClassMeanDistance as ClassMeanDistance
from .policies import Entropy as Entropy
from .policies import GateThreshold as GateThreshold
from .policies import LearnedScore as LearnedScore
from .policies import Margin as Margin
from .policies import MaxProbability as MaxProbability
from .policies import NeverExit as NeverExit
from .policies import Patience as Patience
from .policies import Policy as Policy
from .policies import Vote as Vote
from .runtime.compile import compile as compile
from .runtime.outputs import ExitOutputs as ExitOutputs
from .runtime.outputs import Prediction as Prediction
from .runtime.streaming import predict_stream as predict_stream
from .storage.exits import load as load
from .storage.exits import save as save
from .surgery.attach import attach as attach
from .surgery.module import EarlyExitModule as EarlyExitModule
from .surgery.operating_point import OperatingPoint as OperatingPoint
from .training.fit import fit as fit

__version__: str
