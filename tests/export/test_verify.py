"""What is verified before a file is put in place, with formats that compute wrong results."""

import re
from itertools import product

import numpy as np
import pytest
import torch
from export_helpers import small
from networks import images
from torch import nn

import leenet_fx
from leenet_fx import DependencyError, ExportError, InputError, MaxProbability, StorageError
from leenet_fx.export.formats import ExportFormat, register_format
from leenet_fx.export.stage_modules import export_plan
from leenet_fx.export.verify import _compositions, thresholds_for
from leenet_fx.run import Prediction


class EagerFormat(ExportFormat):
    """Writes a text, and runs the network itself."""

    extra = "nothing"
    modules = ("numpy",)
    seen = None

    def write(self, plan, description, path):
        path.write_text("a network")

    def open(self, plan, path):
        @torch.no_grad()
        def run(batch, thresholds, alpha):
            policy = plan.ee.policy
            if thresholds is not None:
                policy = MaxProbability([float(value) for value in thresholds])
            logits, exits = plan.ee.run_with(torch.from_numpy(batch), policy)
            if not len(batch):
                return Prediction(logits.numpy(), exits.numpy(), np.empty(0))
            return self.change(logits, exits)

        return run

    def change(self, logits, exits):
        type(self).seen.append(tuple(torch.bincount(exits, minlength=3).tolist()))
        return Prediction(logits.numpy(), exits.numpy(), logits.softmax(1).amax(1).numpy())


@register_format("test-eager")
class Right(EagerFormat):
    pass


@register_format("test-wrong-logits")
class WrongLogits(EagerFormat):
    def change(self, logits, exits):
        # The last of the exits, in one of the rows.
        logits = torch.where((exits == 1).unsqueeze(1), logits * (1 + 1e-4), logits)
        return Prediction(logits.numpy(), exits.numpy(), logits.softmax(1).amax(1).numpy())


@register_format("test-last-stage")
class WrongLastStage(EagerFormat):
    def change(self, logits, exits):
        logits = torch.where((exits == 2).unsqueeze(1), logits * (1 + 1e-3), logits)
        return Prediction(logits.numpy(), exits.numpy(), logits.softmax(1).amax(1).numpy())


@register_format("test-wrong-exits")
class WrongExits(EagerFormat):
    def change(self, logits, exits):
        if len(exits) == 3 and exits.tolist().count(2) == 2:
            exits = exits.flip(0)
        return Prediction(logits.numpy(), exits.numpy(), logits.softmax(1).amax(1).numpy())


@register_format("test-crash")
class Crash(EagerFormat):
    def open(self, plan, path):
        run = super().open(plan, path)
        Crash.seen = []

        def checked(batch, thresholds, alpha):
            if not len(batch):
                raise RuntimeError("no rows\nand a trace")
            return run(batch, thresholds, alpha)

        return checked


@register_format("test-absent")
class Absent(EagerFormat):
    modules = ("numpy", "no_such_runtime")
    extra = "phantom"


@pytest.fixture
def ee():
    network = small()
    network.policy = MaxProbability([0.25, 0.24])
    return network


def test_every_way_to_spread_up_to_four_samples_over_the_exits_is_run(ee, tmp_path):
    Right.seen = []
    result = leenet_fx.export(ee, tmp_path / "net", "test-eager", images=images(5, 3, 16, 16))
    for size in range(1, 5):
        every = {counts for counts in product(range(size + 1), repeat=3) if sum(counts) == size}
        run = [counts for counts in Right.seen if sum(counts) == size]
        assert set(run) == every
        # On random images, and on the given ones.
        assert len(run) >= 2 * len(every) - result.verification.unreachable
    assert any(sum(counts) == 32 and min(counts) >= 10 for counts in Right.seen)


@pytest.mark.parametrize(("size", "bins"), [(1, 2), (4, 3), (3, 5)])
def test_compositions_are_all_of_them(size, bins):
    expected = [c for c in product(range(size + 1), repeat=bins) if sum(c) == size]
    assert sorted(_compositions(size, bins)) == sorted(expected)


def test_with_many_exits_some_ways_are_run_and_each_exit_is_among_them(tmp_path):
    network = small([0, 1, 2, 3])
    network.policy = MaxProbability(0.3)
    Right.seen = []
    leenet_fx.export(network, tmp_path / "net", "test-eager")
    for size in range(1, 5):
        run = [counts for counts in Right.seen if sum(counts) == size]
        assert len(run) <= 46
        assert sum(max(counts) == size for counts in set(run)) == 5


@pytest.mark.parametrize("counts", [(3, 2, 4), (0, 0, 9), (9, 0, 0), (0, 9, 0), (1, 1, 7)])
def test_thresholds_let_the_given_numbers_exit(ee, counts):
    batch = images(9, 3, 16, 16)
    thresholds = thresholds_for(export_plan(ee), batch, counts)
    ee.policy = MaxProbability(thresholds)
    exits = ee.predict(batch).exit_index
    assert tuple(torch.bincount(exits, minlength=3).tolist()) == counts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test-wrong-logits", r"other logits on a batch of \d .*MaxProbability.*is 0.000"),
        ("test-wrong-exits", r"other exits on a batch of 3 .*expected \[.*\], got \["),
        ("test-crash", r"cannot run the exported network on a batch of 0: no rows$"),
    ],
)
def test_a_file_that_computes_something_else_is_not_put_in_place(ee, tmp_path, name, message):
    (tmp_path / "net").write_text("an earlier export")
    with pytest.raises(ExportError, match=message):
        leenet_fx.export(ee, tmp_path / "net", name)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert (tmp_path / "net").read_text() == "an earlier export"


class Amplifier(nn.Module):
    """Loses digits in 32 bits."""

    def forward(self, x):
        return (x + 3000) - 3000


@pytest.mark.parametrize("amplifies", [False, True])
def test_networks_that_amplify_rounding_are_told_so(tmp_path, amplifies):
    torch.manual_seed(0)
    network = leenet_fx.attach(
        nn.Sequential(
            *(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(4)),
            Amplifier() if amplifies else nn.Identity(),
            nn.Flatten(),
            nn.Linear(3 * 8 * 8, 4),
        ).eval(),
        [0, 1],
        example_inputs=torch.zeros(1, 3, 8, 8),
        blocks="?",
    )
    network.policy = MaxProbability(0.5)
    with pytest.raises(ExportError, match="other logits on a batch") as error:
        leenet_fx.export(network, tmp_path / "net", "test-last-stage")
    sentence = r"It amplifies rounding: PyTorch's own results in 32 bits differ from those in 64 by"
    assert bool(re.search(sentence, str(error.value))) == amplifies


def test_a_missing_library_names_the_extra_before_anything_is_computed(ee, tmp_path):
    with pytest.raises(DependencyError, match=r"no_such_runtime: pip install 'leenet-fx\[phantom]"):
        leenet_fx.export(ee, tmp_path / "net", "test-absent")
    with pytest.raises(leenet_fx.UnknownNameError, match=r"'onxx'. Did you mean 'onnx'"):
        leenet_fx.export(ee, tmp_path / "net", "onxx")
    assert not list(tmp_path.iterdir())


def test_what_is_in_the_way_is_not_replaced(ee, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("x")
    with pytest.raises(StorageError, match="is a folder: choose another path"):
        leenet_fx.export(ee, tmp_path / "folder", "test-eager")
    with pytest.raises(StorageError, match="has files that are none of an exported network"):
        leenet_fx.export(ee, tmp_path / "folder", "onnx-stages")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="is a file: choose another path"):
        leenet_fx.export(ee, tmp_path / "file", "onnx-stages")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "x"


@register_format("test-folder")
class Folder(Right):
    is_folder = True

    def write(self, plan, description, path):
        path.mkdir()
        (path / "manifest.json").write_text("{}")
        (path / f"{len(list(path.parent.parent.iterdir()))}.bin").write_text("x")


def test_a_folder_of_an_earlier_export_is_replaced_as_a_whole(ee, tmp_path):
    Right.seen = Folder.seen = []
    leenet_fx.export(ee, tmp_path / "net", "test-folder")
    first = {path.name for path in (tmp_path / "net").iterdir()}
    (tmp_path / "other").write_text("x")
    leenet_fx.export(ee, tmp_path / "net", "test-folder")
    second = {path.name for path in (tmp_path / "net").iterdir()}
    assert first & second == {"manifest.json", "SHA256SUMS"}
    assert len(first) == len(second) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "other"]


def test_images_that_do_not_fit_are_refused(ee, tmp_path):
    with pytest.raises(InputError, match="3 channels, got 1"):
        leenet_fx.export(ee, tmp_path / "net", "test-eager", images=images(2, 1, 16, 16))
    with pytest.raises(InputError, match=r"exported for images of \(3, 16, 16\), got \(3, 20, 16"):
        leenet_fx.export(ee, tmp_path / "net", "test-eager", images=images(2, 3, 20, 16))


def test_the_network_is_not_changed(ee, tmp_path):
    policy = ee.policy
    before = {key: value.clone() for key, value in ee.state_dict().items()}
    Right.seen = []
    leenet_fx.export(ee, tmp_path / "net", "test-eager")
    assert ee.policy is policy
    assert not ee.training
    assert all(torch.equal(value, before[key]) for key, value in ee.state_dict().items())
