"""Groups of options in the signatures of verbs."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from helpers import run
from typer.testing import CliRunner

from leenet_fx.cli import app
from leenet_fx.cli.options import BranchOptions, OutputOptions, PlacementOptions, expand_options

# Verbs, and the options that --help lists, in order.
PLACEMENT = ("strategy", "num-exits", "at", "block")
BRANCH = ("branch", "head", "gate", "conv-blocks")
SHAPES = ("num-classes", "input-size")
IMAGES = (
    *("data", "root", "download", "skip-bad", "classes", "exif-orientation"),
    *("mean", "std", "interpolation"),
)
WEIGHTS = ("weights", "pretrained")
LOADER = ("batch-size", "workers")
TARGET = (
    "max-drop",
    "max-disagreement",
    "budget",
    "confidence",
    "per-class",
    "solver",
    "temperatures",
)
KEEP = ("keep", "max-drop", "budget")
LAST = ("config", "format", "json", "help")
VERBS = {
    "inspect": (
        *(*PLACEMENT, *BRANCH, *SHAPES, "cost", "latency", "device", "batch-size", "plot"),
        "overwrite",
        *LAST[1:],
    ),
    "fit": (
        *("out", *IMAGES, *WEIGHTS, *PLACEMENT, *BRANCH, *SHAPES, "method", "option", "alpha"),
        *("cost", "epochs", "gate-epochs", "lr", "patience", "augment", *LOADER, "accelerator"),
        *("devices", "precision", "tensorboard", *TARGET, "resume", "overwrite", "seed", *LAST),
    ),
    "calibrate": (
        *("model", *IMAGES, "weights", "split", *LOADER, *TARGET, "name", "seed"),
        *LAST,
    ),
    "evaluate": (
        *("model", *IMAGES, "weights", "split", *LOADER, "size", "overwrite"),
        *LAST,
    ),
    "sweep": (
        *("out", "alphas", "seeds", "seed", *IMAGES, *WEIGHTS, *PLACEMENT, *BRANCH, *SHAPES),
        *("method", "option", "cost", "epochs", "gate-epochs", "lr", *LOADER, "timed"),
        *(*KEEP, "overwrite", *LAST),
    ),
    "compare": (
        *("out", "methods", "joint", "seeds", "seed", *IMAGES, *WEIGHTS, *PLACEMENT, *SHAPES),
        *("epochs", "augment", "precision", *LOADER, *KEEP, "overwrite", *LAST),
    ),
    "export": (
        *("format", "point", "backbone", "model", *IMAGES, "weights", "split", "config"),
        *("json", "help"),
    ),
    "serve": (
        *("model", "weights", "mean", "std", "interpolation", "point", "host", "port", "api-key"),
        *("batch-size", "max-delay", "queue", "max-bytes", "max-pixels", "rate", "threads"),
        *("ray", "ray-address", "replicas", "replica-cpus", "help"),
    ),
    "tier": (
        *("stages", "listen", "next", "dtype", "bandwidth", "timeout", "point", "limit"),
        *("model", *IMAGES, "weights", "split", *LOADER, *LAST[1:]),
    ),
    "run": ("data", "point", "backbone", "batch-size", "threads", "limit", *LAST[1:]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_every_option_of_a_verb(verb):
    lines = run(verb, "--help").stdout.partition("Options:")[2].splitlines()
    options = [line.split()[0] for line in lines if line.strip().startswith("--")]
    assert options == [f"--{name}" for name in VERBS[verb]]


def test_verbs_have_defaults_of_their_own():
    defaults = {
        verb: {
            parameter.name: parameter.default
            for parameter in typer.main.get_command(app.app).commands[verb].params
        }
        for verb in ("fit", "sweep", "compare")
    }
    assert [defaults[verb]["strategy"] for verb in defaults] == ["auto", "auto", "every"]
    assert [defaults[verb].get("method") for verb in defaults] == ["shallow-deep", "leenet", None]


@dataclass(frozen=True)
class Pair:
    first: Annotated[int, typer.Option(min=0)] = 1
    second: Annotated[str | None, typer.Option(help="Any text.")] = None


def test_a_verb_receives_its_groups():
    received = []
    verb = typer.Typer()

    @verb.command()
    @expand_options
    def call(name: str, *, pair: Pair = Pair(first=5), more: bool = False) -> None:
        received.append((name, pair, more))

    for arguments in (["a"], ["b", "--first", "3", "--second", "x", "--more"]):
        assert CliRunner().invoke(verb, arguments).exit_code == 0
    assert received == [("a", Pair(5, None), False), ("b", Pair(3, "x"), True)]
    assert CliRunner().invoke(verb, ["a", "--first", "-1"]).exit_code == 2


def test_an_option_declared_twice_is_an_error():
    def call(*, pair: Pair, first: int = 0) -> None:
        pass

    with pytest.raises(TypeError, match="'call' declares the option 'first' more than once"):
        expand_options(call)


def test_options_that_were_not_given_are_left_to_the_method():
    assert BranchOptions().branch_options() == {}
    assert BranchOptions(gate="alpha", conv_blocks=0).branch_options() == {
        "gate": "alpha",
        "blocks": 0,
    }
    assert PlacementOptions().strategy == "auto"
    assert OutputOptions(as_json=True).is_json
    assert not OutputOptions().is_json
