"""The feature cache: the same weights as without it, with one run of the backbone."""

import copy

import pytest
import torch
from helpers import assert_equal, attached, data, shuffled
from networks import branches_of_images, images, tiny
from torch.utils.data import DataLoader, TensorDataset

import leenet_fx
from leenet_fx import InputError, StorageError, cache_features


@pytest.mark.parametrize("branch", branches_of_images())
def test_fit_on_cached_features_equals_fit_on_images(branch):
    ee = attached(branch=branch)
    for options in ({}, {"train_final": True}):
        live, cached = copy.deepcopy(ee), copy.deepcopy(ee)
        first = leenet_fx.fit(
            live, shuffled(), shuffled(40, 5), epochs=3, seed=2, method="leenet", **options
        )
        second = leenet_fx.fit(
            cached,
            shuffled(),
            shuffled(40, 5),
            epochs=3,
            seed=2,
            cache=True,
            method="leenet",
            **options,
        )
        assert_equal(live, cached)
        assert [e.phase for e in first.history] == [e.phase for e in second.history]
        for a, b in zip(first.history, second.history, strict=True):
            assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)
            assert a.val_loss == pytest.approx(b.val_loss, rel=1e-4)


def test_one_cache_serves_several_fits_with_one_run_of_the_backbone():
    ee = attached()
    runs = []
    ee.get_submodule("stem").register_forward_hook(lambda *args: runs.append(1))
    with cache_features(ee, shuffled()) as cache:
        assert len(cache) == 96
        passes = len(runs)
        assert passes == 5
        for alpha in (0.1, 0.9):
            leenet_fx.fit(ee, cache, alpha=alpha, epochs=2, method="leenet")
        assert len(runs) == passes


def test_a_list_of_batches_is_replayed_in_order():
    x, labels = data(30)
    batches = [(x[:20], labels[:20]), (x[20:], labels[20:])]
    live, cached = attached(), attached()
    leenet_fx.fit(live, batches, epochs=2, method="leenet")
    leenet_fx.fit(cached, batches, epochs=2, cache=True, method="leenet")
    assert_equal(live, cached)


def test_a_cache_in_files_gives_the_same_weights_and_its_files_are_removed(tmp_path):
    ee, other = attached(), attached()
    cache = cache_features(ee, shuffled(), limit=1000, folder=tmp_path)
    assert cache.on_disk
    assert sum(f.stat().st_size for f in tmp_path.rglob("*.bin")) == cache.bytes
    leenet_fx.fit(ee, cache, epochs=2, method="leenet")
    with cache_features(other, shuffled()) as memory:
        assert not memory.on_disk
        leenet_fx.fit(other, memory, epochs=2, method="leenet")
    assert_equal(ee, other, atol=0)
    cache.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="closed"):
        leenet_fx.fit(ee, cache, epochs=1, method="leenet")


def test_an_error_while_reading_removes_the_files(tmp_path):
    x, labels = data(40)
    labels[35] = 99
    with pytest.raises(InputError, match="label 99"):
        cache_features(
            attached(), DataLoader(TensorDataset(x, labels), 10), limit=1, folder=tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_an_error_before_reading(tmp_path, monkeypatch):
    class Usage:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(StorageError, match=r"need .* bytes, but .* has 10 left"):
        cache_features(attached(), shuffled(), limit=1, folder=tmp_path)
    assert not list(tmp_path.iterdir())


class Augmented(TensorDataset):
    """Images that differ from one reading to the next by a known constant."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        x, label = super().__getitem__(index)
        return x + self.reads, label


def test_augmented_images_are_an_error_or_cached_in_several_views():
    ee = attached()
    loader = DataLoader(Augmented(*data(40)), 20)
    with pytest.raises(InputError, match="views=k"):
        cache_features(ee, loader)
    loader.dataset.reads = 0
    with cache_features(ee, loader, views=3) as cache:
        assert len(cache) == 40
        assert cache.num_samples == 120
        device = torch.device("cpu")
        epochs = [next(iter(cache.epoch(device))).pooled[0][0] for _ in range(4)]
    assert torch.equal(epochs[0], epochs[3])
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    with torch.no_grad():
        third = data(40)[0][:20] + torch.arange(81, 101).view(-1, 1, 1, 1)
        expected = ee.exits[0].pool(*next(ee.exit_features(third)))[0]
    assert torch.allclose(epochs[2], expected, atol=1e-4)


def test_a_cache_of_another_network_is_an_error():
    ee = attached()
    with cache_features(ee, shuffled()) as cache:
        moved = copy.deepcopy(ee)
        with torch.no_grad():
            next(moved.get_submodule("blocks.0").parameters()).add_(1)
        fewer = leenet_fx.attach(tiny(), ["blocks.1"], example_inputs=images(1, 3, 16, 16))
        for other in (moved, fewer, attached(branch="flatten")):
            with pytest.raises(InputError, match="another network"):
                leenet_fx.fit(other, cache, epochs=1, method="leenet")
        leenet_fx.fit(copy.deepcopy(ee), cache, epochs=1, method="leenet")


def test_caching_changes_neither_modes_nor_the_generator_of_the_loader():
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


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_cache_is_accepted_with_other_threads_and_memory_formats(threads):
    threads(1)
    ee = attached()
    with cache_features(ee, shuffled()) as cache:
        threads(2)
        assert cache.fits(ee)
        ee.to(memory_format=torch.channels_last)
        assert cache.fits(ee)
        leenet_fx.fit(ee, cache, epochs=1, method="leenet")
        assert cache.fits(copy.deepcopy(ee))


def test_every_change_of_a_weight_of_the_backbone_is_noticed():
    ee = attached()
    weight = ee.get_submodule("blocks.0.conv1").weight
    mean = ee.get_submodule("blocks.0.bn").running_mean
    with cache_features(ee, shuffled()) as cache, torch.no_grad():
        for tensor in (weight, mean, weight.data):
            first = tensor.view(-1)[0].clone()
            tensor.view(-1)[0] += 1
            assert not cache.fits(ee)
            with pytest.raises(InputError, match="another network"):
                cache.check(ee)
            tensor.view(-1)[0] = first
            assert cache.fits(ee)


def test_exits_and_a_final_classifier_on_cached_inputs_may_change():
    ee = attached()
    with cache_features(ee, shuffled()) as cache, torch.no_grad():
        ee.exits[0].head.linear.weight.add_(1)
        ee.fc.weight.add_(1)
        assert cache.fits(ee)


def test_a_list_of_batches_has_the_same_batches_in_every_view():
    x, labels = data(30)
    readings = []

    class Batches(list):
        def __iter__(self):
            readings.append(1)
            return iter([(x + len(readings), labels)])

    with cache_features(attached(), Batches([(x, labels)]), views=2) as cache:
        device = torch.device("cpu")
        sizes = [[len(batch.labels) for batch in cache.epoch(device)] for _ in range(3)]
    assert sizes == [[30]] * 3
