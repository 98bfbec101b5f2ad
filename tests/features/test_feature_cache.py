"""The feature cache: the same weights as without it, for one run of the backbone."""

import copy

import pytest
import torch
from helpers import assert_equal, data, shuffled
from networks import images, tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError, StorageError, cache_features
from leenet_fx.parts.branches import list_branches


def attached(**options):
    return leenet_fx.attach(tiny(), "every", example_inputs=images(1, 3, 16, 16), **options)


@pytest.mark.parametrize("branch", list_branches())
def test_fit_on_kept_features_is_fit_on_the_images(branch):
    ee = attached(branch=branch)
    for options in ({}, {"train_final": True}):
        live, kept = copy.deepcopy(ee), copy.deepcopy(ee)
        first = leenet_fx.fit(
            live, shuffled(), shuffled(40, 5), epochs=3, seed=2, method="leenet", **options
        )
        second = leenet_fx.fit(
            kept,
            shuffled(),
            shuffled(40, 5),
            epochs=3,
            seed=2,
            cache=True,
            method="leenet",
            **options,
        )
        assert_equal(live, kept)
        assert [e.step for e in first.history] == [e.step for e in second.history]
        for a, b in zip(first.history, second.history, strict=True):
            assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)
            assert a.val_loss == pytest.approx(b.val_loss, rel=1e-4)


def test_one_cache_serves_many_fits_and_the_backbone_runs_once():
    ee = attached()
    runs = []
    ee.get_submodule("stem").register_forward_hook(lambda *given: runs.append(1))
    with cache_features(ee, shuffled()) as kept:
        assert len(kept) == 96
        passes = len(runs)
        assert passes == 5
        for alpha in (0.1, 0.9):
            leenet_fx.fit(ee, kept, alpha=alpha, epochs=2, method="leenet")
        assert len(runs) == passes


def test_a_list_of_batches_is_replayed_as_it_is():
    x, labels = data(30)
    batches = [(x[:20], labels[:20]), (x[20:], labels[20:])]
    live, kept = attached(), attached()
    leenet_fx.fit(live, batches, epochs=2, method="leenet")
    leenet_fx.fit(kept, batches, epochs=2, cache=True, method="leenet")
    assert_equal(live, kept)


def test_kept_in_files_it_is_the_same_and_the_files_go(tmp_path):
    ee, other = attached(), attached()
    kept = cache_features(ee, shuffled(), limit=1000, folder=tmp_path)
    assert kept.on_disk
    assert sum(f.stat().st_size for f in tmp_path.rglob("*.bin")) == kept.bytes
    leenet_fx.fit(ee, kept, epochs=2, method="leenet")
    with cache_features(other, shuffled()) as memory:
        assert not memory.on_disk
        leenet_fx.fit(other, memory, epochs=2, method="leenet")
    assert_equal(ee, other, atol=0)
    kept.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="closed"):
        leenet_fx.fit(ee, kept, epochs=1, method="leenet")


def test_a_failed_reading_leaves_no_file(tmp_path):
    x, labels = data(40)
    labels[35] = 99
    with pytest.raises(InputError, match="label 99"):
        cache_features(
            attached(), DataLoader(TensorDataset(x, labels), 10), limit=1, folder=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_named_before_the_work(tmp_path, monkeypatch):
    class Usage:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(StorageError, match=r"need .* bytes, but .* has 10 left"):
        cache_features(attached(), shuffled(), limit=1, folder=tmp_path)
    assert not list(tmp_path.iterdir())


class Augmented(TensorDataset):
    """Each reading differs; which view it is can be read off the image."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        x, label = super().__getitem__(index)
        return x + self.reads, label


def test_augmented_images_are_refused_or_kept_in_a_stated_number_of_views():
    ee = attached()
    loader = DataLoader(Augmented(*data(40)), 20)
    with pytest.raises(InputError, match="views=k"):
        cache_features(ee, loader)
    loader.dataset.reads = 0
    with cache_features(ee, loader, views=3) as kept:
        assert len(kept) == 40
        device = torch.device("cpu")
        epochs = [next(iter(kept.epoch(device))).pooled[0][0] for _ in range(4)]
    assert torch.equal(epochs[0], epochs[3])
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    with torch.no_grad():
        third = data(40)[0][:20] + torch.arange(81, 101).view(-1, 1, 1, 1)
        expected = ee.exits[0].pool(*next(ee.exit_features(third)))[0]
    assert torch.allclose(epochs[2], expected, atol=1e-4)


def test_a_cache_of_another_network_is_refused():
    ee = attached()
    with cache_features(ee, shuffled()) as kept:
        moved = copy.deepcopy(ee)
        with torch.no_grad():
            next(moved.get_submodule("blocks.0").parameters()).add_(1)
        fewer = leenet_fx.attach(tiny(), ["blocks.1"], example_inputs=images(1, 3, 16, 16))
        for other in (moved, fewer, attached(branch="flatten")):
            with pytest.raises(InputError, match="another network"):
                leenet_fx.fit(other, kept, epochs=1, method="leenet")
        leenet_fx.fit(copy.deepcopy(ee), kept, epochs=1, method="leenet")


def test_a_cache_leaves_modes_and_the_loaders_generator_alone():
    ee = attached().train()
    loader = shuffled()
    before = loader.generator.get_state()
    with cache_features(ee, loader):
        assert ee.training
        assert torch.equal(before, loader.generator.get_state())


@pytest.mark.parametrize("views", [0, -1, 1.5, True])
def test_views_must_be_a_whole_number(views):
    with pytest.raises(InputError, match="views must be"):
        cache_features(attached(), shuffled(), views=views)
