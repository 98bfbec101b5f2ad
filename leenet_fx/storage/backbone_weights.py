"""Weights of a backbone from the files that training code leaves."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leenet_fx.errors import InputError, StorageError, first_line
from leenet_fx.storage.architectures import class_counts, identify
from leenet_fx.storage.weight_files import read_weight_file, state_dicts
from leenet_fx.surgery.module import EarlyExitModule

logger = logging.getLogger("leenet_fx")

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Modules that torch puts around others: of DataParallel and DistributedDataParallel, of
torch.compile, of FSDP, of checkpointed activations."""

COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged")
"""Entries that count: those of BatchNorm, thop and AveragedModel."""


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_backbone_weights` took from a file.

    Attributes:
        entry: keys of the state dict in the file, joined by dots; "" if the file is one.
        prefix: that was removed from its names.
        ignored: names outside the prefix, and counters, which are no weights of the model.
    """

    entry: str
    prefix: str
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        return f"'{self.entry or 'the whole file'}'" + (
            f", names that start with '{self.prefix}'" if self.prefix else ""
        )


class ClassCountError(StorageError):
    """Weights of the same architecture for another number of classes.

    Attributes:
        found: number of classes of the file.
    """

    def __init__(self, message: str, found: int) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True)
class _Candidate:
    """A state dict of a file, under a prefix, beside the model's.

    Attributes:
        source: where it is in the file.
        values: entries by the model's names.
        missing: names of the model that it lacks.
        foreign: names under the prefix that the model lacks.
        differing: names of another shape or another kind of number.
    """

    source: LoadedWeights
    values: dict[str, Any]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    differing: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.foreign or self.differing)


def load_backbone_weights(model: nn.Module, path: str | Path) -> LoadedWeights:
    """Load the weights of a file into a model, before exits are attached; runs no code of the file.

    The file may be a .safetensors file or a torch file: a state dict, or a checkpoint that holds
    one among other things. Prefixes that all names have, such as those of DistributedDataParallel,
    torch.compile and Lightning, are removed. Of weights and their exponential moving average
    ("ema"), the average is taken, with a warning. Dtypes are converted to the model's.

    Args:
        model: receives the weights; unchanged if an error is raised.
        path: of the file.

    Returns:
        What was taken from the file.

    Raises:
        StorageError: the file cannot be read without running code from it; it holds no weights of
            this model, those of several, or those of another number of classes.
        InputError: `model` has exits.
    """
    path = Path(path)
    if isinstance(model, EarlyExitModule):
        raise InputError("Load the weights of the backbone into the model, before attach.")
    found = list(state_dicts(read_weight_file(path)))
    if not found:
        raise StorageError(f"Weights '{path}' must hold a state dict: the file holds no tensors.")
    candidates = [one for entry, state in found for one in _candidates(model, entry, state)]
    fitting = [candidate for candidate in candidates if candidate.fits]
    if fitting:
        chosen = _choose(path, fitting)
        _load(model, path, chosen.values)
        logger.info("'%s': loaded %s.", path, chosen.source)
        return chosen.source
    named = any(not candidate.missing and not candidate.foreign for candidate in candidates)
    for entry, state in [] if named else found:
        # Models may rename entries of earlier versions when they load them.
        if _loads(model, _unwrapped(state, frozenset(WRAPPERS))):
            return LoadedWeights(entry, "", ())
    raise _mismatch(path, model, found, candidates)


def _candidates(model: nn.Module, entry: str, state: Mapping[str, Any]) -> Iterator[_Candidate]:
    """Yield the state dict under each prefix that leaves names of the model."""
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    parts = {part for name in own for part in name.split(".")}
    clean = _unwrapped(state, frozenset(WRAPPERS) - parts)
    prefixes = Counter(
        key[: len(key) - len(name)]
        for key in clean
        for name in _endings(key)
        if name in own and not name.endswith(COUNTERS)
    )
    for prefix, _ in prefixes.most_common():
        yield _candidate(model, own, entry, prefix, clean)


def _candidate(
    model: nn.Module, own: Mapping[str, Any], entry: str, prefix: str, clean: Mapping[str, Any]
) -> _Candidate:
    inside = {k.removeprefix(prefix): v for k, v in clean.items() if k.startswith(prefix)}
    values = {name: value for name, value in inside.items() if name in own}
    tied = {id(own[name]) for name in values}
    constants = {name for name, _ in model.named_buffers(remove_duplicate=False)} - own.keys()
    extra = [name for name in inside if name not in own and isinstance(inside[name], Tensor)]
    foreign = [n for n in extra if n not in constants and n.rpartition(".")[2] not in COUNTERS]
    outside = [name for name in clean if not name.startswith(prefix)]
    return _Candidate(
        source=LoadedWeights(entry, prefix, (*outside, *(set(extra) - set(foreign)))),
        values=values,
        missing=tuple(
            name
            for name, value in own.items()
            if name not in values and id(value) not in tied and not name.endswith(COUNTERS)
        ),
        foreign=tuple(foreign),
        differing=tuple(n for n, v in values.items() if _kind(v) != _kind(own[n])),
    )


def _choose(path: Path, fitting: Sequence[_Candidate]) -> _Candidate:
    """Return the weights to load, of one or several that fit.

    Raises:
        StorageError: several differ, and none or several are an average.
    """
    first, *others = fitting
    if all(_equal(first.values, other.values) for other in others):
        return first
    named = ", ".join(str(candidate.source) for candidate in fitting)
    averages = [candidate for candidate in fitting if _is_average(candidate.source)]
    if len(averages) != 1:
        raise StorageError(
            f"Weights '{path}' holds several state dicts of this model, of different values: "
            f"{named}. Save the one that is meant in a file of its own."
        )
    logger.warning(
        "'%s' holds %s: the moving average was loaded, %s.", path, named, averages[0].source
    )
    return averages[0]


def _load(model: nn.Module, path: Path, values: Mapping[str, Any]) -> None:
    before = copy.deepcopy(model.state_dict())
    try:
        model.load_state_dict(dict(values), strict=False)
    except Exception as error:
        model.load_state_dict(before)
        raise StorageError(f"Weights '{path}' cannot be loaded: {first_line(error)}") from error


def _loads(model: nn.Module, state: Mapping[str, Any]) -> bool:
    """Return whether the model itself takes a state dict, which is then loaded."""
    before = copy.deepcopy(model.state_dict())
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    try:
        model.load_state_dict(tensors)
    except Exception:
        model.load_state_dict(before)
        return False
    return True


def _mismatch(
    path: Path,
    model: nn.Module,
    found: Sequence[tuple[str, Mapping[str, Any]]],
    candidates: Sequence[_Candidate],
) -> StorageError:
    """Return the error for a file that holds no weights of the model."""
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    expected = _shapes(own)
    for candidate in candidates:
        counts = class_counts(expected, _shapes(candidate.values))
        if counts is not None and not candidate.missing and not candidate.foreign:
            name = candidate.differing[0]
            return ClassCountError(
                f"Weights '{path}' are of a model of {counts[1]} classes: '{name}': expected "
                f"{expected[name]}, found {tuple(candidate.values[name].shape)}. Build the model "
                f"with {counts[1]} classes; on the command line, --num-classes {counts[1]}.",
                counts[1],
            )
    best = max(candidates, key=lambda one: len(one.values), default=None)
    if best is None or best.missing:
        name = best.missing[0] if best is not None else next(iter(expected), "nothing")
        difference = f"'{name}': expected {expected.get(name, 'an entry')}, found nothing"
    elif best.differing:
        name = best.differing[0]
        pair = _described(own[name]), _described(best.values[name])
        difference = f"'{name}': expected {pair[0]}, found {pair[1]}"
    else:
        difference = f"'{best.foreign[0]}': expected nothing, found an entry"
    entry, state = max(found, key=lambda pair: len(_shapes(pair[1])))
    shapes = _shapes(_unwrapped(state, frozenset(WRAPPERS)))
    where = f"'{entry}' of it" if entry else "it"
    message = (
        f"Weights '{path}' are not those of this model: {difference}. {where} holds {len(shapes)} "
        f"tensors ({_examples(shapes)}), the model {len(expected)} ({_examples(expected)}); "
        f"{len(best.values) if best else 0} names agree."
    )
    name_of_library = identify(shapes)
    if name_of_library is not None:
        message += f" Its names and shapes are those of {name_of_library}."
    return StorageError(message)


def _unwrapped(state: Mapping[str, Any], wrappers: frozenset[str]) -> dict[str, Any]:
    """Return a state dict without the names of wrappers, or as it is if names would collide."""
    clean = {
        ".".join(part for part in key.split(".") if part not in wrappers): value
        for key, value in state.items()
    }
    return clean if len(clean) == len(state) else dict(state)


def _endings(key: str) -> Iterator[str]:
    """Yield a name, and what is left of it without its first parts."""
    yield key
    while "." in key:
        key = key.partition(".")[2]
        yield key


def _is_average(source: LoadedWeights) -> bool:
    return "ema" in f"{source.entry}.{source.prefix}".lower().replace("_", ".").split(".")


def _equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    tensors = [name for name, value in first.items() if isinstance(value, Tensor)]
    return all(torch.equal(first[name], second[name]) for name in tensors if name in second)


def _kind(value: object) -> tuple[object, ...]:
    """Return what must be equal for a tensor to be copied into another without loss of meaning."""
    if not isinstance(value, Tensor):
        return (type(value).__name__,)
    number = (
        "complex" if value.is_complex() else "float" if value.is_floating_point() else "integer"
    )
    special = (str(value.layout),) if value.layout != torch.strided else ()
    return (*value.shape, number, *special, *(("quantised",) if value.is_quantized else ()))


def _described(value: object) -> str:
    """Return shape and dtype of a tensor, the type of another object."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} of {value.dtype}"


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}


def _examples(shapes: Mapping[str, tuple[int, ...]]) -> str:
    first = [f"'{name}' {shape}" for name, shape in list(shapes.items())[:3]]
    return "such as " + ", ".join(first) if first else "none"
