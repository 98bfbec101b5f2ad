"""fit, evaluate, sweep and compare on loaders of many kinds: they work, or the error names why."""

import copy
import math

import pytest
import torch
from helpers import assert_equal, data, loader, shuffled
from networks import images, tiny
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import leenet_fx
from leenet_fx import InputError, cache_features
from leenet_fx.evaluation.comparison import MethodSpec
from leenet_fx.features.feature_store import FeatureStore

X, Y = data(40)
NETWORK = leenet_fx.attach(tiny(), [1], example_inputs=X[:1])


def attached():
    return copy.deepcopy(NETWORK)


def fitted(train, ee=None, **options):
    ee = attached() if ee is None else ee
    settings = {"method": "shallow-deep", "epochs": 2, **options}
    leenet_fx.fit(ee, train, **settings)
    return ee


def batches(*sizes):
    """Batches of the first images, of these sizes."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    pairs = zip(ends, sizes, strict=True)
    return [(X[end - size : end], Y[end - size : end]) for end, size in pairs]


class Unsized:
    """Batches whose number is not known, so that the learning rate changes once an epoch."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Stream(IterableDataset):
    """Images one by one, of unknown number."""

    def __iter__(self):
        return iter([(x, int(y)) for x, y in zip(X, Y, strict=True)])


class Sized(Stream):
    def __len__(self):
        return 40


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    "train",
    [
        DataLoader(Stream(), 16),
        DataLoader(Stream(), 16, drop_last=True),
        DataLoader(Sized(), 16),
        batches(16, 16, 8),
        tuple(batches(4, 16, 12, 8)),
        DataLoader([(x, y) for x, y in batches(16, 16, 8)], batch_size=None),
        [{"pixel_values": x, "labels": y} for x, y in batches(16, 16, 8)],
        [{"image": x, "label": y, "name": "a"} for x, y in batches(16, 16, 8)],
        [(x, y, torch.arange(len(y))) for x, y in batches(16, 16, 8)],
        [[x, y.int()] for x, y in batches(16, 16, 8)],
        [(x, y.to(torch.uint8)) for x, y in batches(16, 16, 8)],
        [(x, y.unsqueeze(1)) for x, y in batches(16, 16, 8)],
        [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches(16, 16, 8)],
        Unsized([*batches(16, 16), (X[:0], Y[:0]), (X[32:], Y[32:])]),
    ],
)
def test_the_form_of_a_loader_does_not_matter(train, cache):
    """The weights are those of a list of (images, labels) with batches of the same sizes."""
    if isinstance(train, DataLoader) and train.drop_last:
        sizes = (16, 16)
    else:
        sizes = (4, 16, 12, 8) if isinstance(train, tuple) else (16, 16, 8)
    expected = batches(*sizes)
    if type(getattr(train, "dataset", train)) in (Stream, Unsized):
        expected = Unsized(expected)
    assert_equal(fitted(train, cache=cache), fitted(expected))


@pytest.mark.parametrize(
    "sampler",
    [
        lambda g: {"shuffle": True, "generator": g, "batch_size": 12},
        lambda g: {"sampler": RandomSampler(X, generator=g), "batch_size": 12, "drop_last": True},
        lambda g: {
            "sampler": WeightedRandomSampler(torch.rand(40), 60, generator=g),
            "batch_size": 16,
        },
        lambda g: {
            "batch_sampler": BatchSampler(SubsetRandomSampler(range(5, 35), generator=g), 7, True)
        },
    ],
)
def test_a_cache_keeps_the_order_of_every_sampler(sampler):
    results = []
    for cache in (False, True):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(3)
        train = DataLoader(TensorDataset(X, Y), **sampler(generator))
        results.append(fitted(train, cache=cache))
    assert_equal(*results)


class OnePass:
    """Gives the same iterator again."""

    def __init__(self):
        self.iterator = iter(batches(16, 16, 8))

    def __iter__(self):
        return self.iterator


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda: (pair for pair in batches(16, 16)), "read only once"),
        (OnePass, "gives the same iterator again"),
        (lambda: DataLoader(TensorDataset(X, Y), batch_size=None), "single samples.*batch_size"),
        (lambda: [((X * 255).to(torch.uint8), Y)], "torch.uint8"),
        (lambda: [(X, Y.float())], "whole-number label"),
        (lambda: [(X.numpy(), Y.numpy())], "must yield tensors"),
        (lambda: DataLoader(TensorDataset(X[:0], Y[:0]), 4), "empty"),
    ],
)
def test_what_a_loader_must_not_be_is_named(train, message, cache):
    ee = attached()
    before = copy.deepcopy(ee.state_dict())
    with pytest.raises(InputError, match=message):
        fitted(train(), ee, cache=cache)
    assert all(torch.equal(before[key], value) for key, value in ee.state_dict().items())


def noisy(samples):
    x, y = torch.utils.data.default_collate(samples)
    return x + torch.rand(len(x), 1, 1, 1), y


def test_a_collate_function_that_augments_is_found_before_caching():
    train = DataLoader(TensorDataset(X, Y), 16, collate_fn=noisy)
    with pytest.raises(InputError, match="views=k"):
        fitted(train, cache=True)
    fitted(train)
    with cache_features(attached(), train, views=2) as cache:
        assert cache.num_samples == 80


class Scales(Dataset):
    """Images of 16 and 24 pixels, in turn."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        size = 16 + 8 * (index % 2)
        return images(1, 3, size, size, seed=index)[0], index % 5


def test_mixed_image_sizes_are_trained_on_or_named():
    by_size = [[*range(0, 20, 2)], [*range(1, 20, 2)]]
    grouped = DataLoader(Scales(), batch_sampler=by_size)
    single = DataLoader(Scales(), batch_size=1)
    live, cached = fitted(grouped), attached()
    assert leenet_fx.evaluate(live, grouped).samples == 20
    with pytest.raises(InputError, match=r"differ in size.*batch_size=1"):
        fitted(grouped, cached, cache=True)
    assert_equal(fitted(single, cached, cache=True), fitted(single))
    flat = leenet_fx.attach(tiny(), [1], example_inputs=images(1, 3, 16, 16), branch="flatten")
    with pytest.raises(InputError, match="one image size only"):
        fitted(single, flat, cache=True)


def test_images_that_are_not_a_number_are_named_when_cached():
    x = X.clone()
    x[21, 0, 3, 3] = math.nan
    for train in (DataLoader(TensorDataset(x, Y), 8), [(x[:20], Y[:20]), (x[20:], Y[20:])]):
        with pytest.raises(InputError, match=r"image 21 .* NaN"):
            fitted(train, cache=True)


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize(
    "mode",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
)
def test_modes_around_fit_do_not_matter(mode, cache):
    expected = fitted(loader(40))
    with mode():
        ee = fitted([(x.clone(), y.clone()) for x, y in loader(40)], attached_before(), cache=cache)
    assert_equal(ee, expected)


def attached_before():
    with torch.inference_mode(False):
        return attached()


def test_joint_training_and_sweeps_run_in_inference_mode():
    ee = attached()
    with torch.inference_mode():
        made = [(x.clone(), y.clone()) for x, y in loader(40)]
        fitted(made, copy_outside(ee), method="branchynet", epochs=1)
        leenet_fx.sweep(ee, made, made, alphas=(0.5,), epochs=1, timed=8, progress=False)
        with cache_features(ee, made) as cache:
            pass
    with cache_features(ee, made) as cache:
        fitted(cache, ee)


def copy_outside(ee):
    with torch.inference_mode(False):
        return copy.deepcopy(ee)


def test_a_network_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        ee = copy.deepcopy(attached_before())
    with pytest.raises(InputError, match=r"under torch\.inference_mode"):
        fitted(loader(40), ee)


def test_evaluate_sweep_and_compare_take_dictionaries():
    as_tuples = [(x, y) for x, y in loader(40)]
    as_dicts = [{"image": x, "label": y.int()} for x, y in as_tuples]
    ee = fitted(as_tuples)
    one, two = (leenet_fx.evaluate(ee, at).accuracy for at in (as_tuples, as_dicts))
    assert one == two
    one, two = (
        leenet_fx.sweep(ee, at, at, alphas=(0.4,), epochs=2, timed=8, progress=False).points[0]
        for at in (as_tuples, as_dicts)
    )
    assert one.shares == two.shares
    specs = [MethodSpec("a", "shallow-deep")]
    one, two = (
        leenet_fx.compare(
            tiny(),
            specs,
            at,
            at,
            at,
            example_inputs=X[:1],
            epochs=1,
            progress=False,
        )
        for at in (as_tuples, as_dicts)
    )
    assert one.runs[0].points == two.runs[0].points


@pytest.mark.parametrize("cache", [False, True])
def test_distilled_exits_with_mix_1_need_no_labels(cache):
    method = leenet_fx.get_method("distilled", mix=1.0)
    expected = fitted(loader(40), method=method)
    for train in ([x for x, _ in loader(40)], [(x,) for x, _ in loader(40)]):
        assert_equal(fitted(train, method=method, cache=cache, val=train), expected)
    for other in (
        leenet_fx.get_method("distilled", mix=0.9),
        leenet_fx.get_method("distilled", mix=1.0, recipe="mixed"),
        "shallow-deep",
    ):
        with pytest.raises(InputError, match="labels are absent"):
            fitted([X], method=other)
    new = leenet_fx.attach(tiny(), [1], example_inputs=X[:1], num_classes=3)
    with pytest.raises(InputError, match="labels are absent"):
        fitted([X], new, method=method)


def test_workers_are_initialised_when_features_are_cached():
    train = DataLoader(Opened(), 8, num_workers=1, worker_init_fn=open_files)
    with cache_features(attached(), train) as cache:
        assert len(cache) == 16


class Opened(Dataset):
    """Images that can be read once a worker has opened its files, or in the main process."""

    handle = None

    def __len__(self):
        return 16

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None and self.handle is None:
            raise OSError("not opened")
        return X[index], Y[index]


def open_files(worker):
    torch.utils.data.get_worker_info().dataset.handle = True


def test_a_store_in_files_grows_with_a_stream_of_unknown_length(tmp_path):
    with cache_features(attached(), DataLoader(Stream(), 3), limit=100, folder=tmp_path) as cache:
        assert cache.on_disk
        with cache_features(attached(), DataLoader(TensorDataset(X, Y), 3)) as memory:
            for ours, theirs in zip(
                cache.first_view(torch.device("cpu")),
                memory.first_view(torch.device("cpu")),
                strict=True,
            ):
                assert torch.equal(ours.labels, theirs.labels)
                for a, b in zip(ours.pooled, theirs.pooled, strict=True):
                    assert torch.equal(a[0], b[0])
    assert not list(tmp_path.iterdir())


def test_features_of_another_shape_are_refused():
    store = FeatureStore(None, 10**6, None)
    store.add([X[:4], Y[:4]])
    with pytest.raises(InputError, match=r"\(3, 8, 16\).*same size"):
        store.add([X[:4, :, :8], Y[:4]])


def test_shuffled_batches_of_a_stream_are_named():
    with pytest.raises(InputError, match="shuffled iterable"):
        fitted(
            DataLoader(
                batches(20, 20),
                batch_size=None,
                shuffle=True,
                generator=torch.Generator().manual_seed(4),
            ),
            cache=True,
        )
    assert_equal(fitted(shuffled(40), cache=True), fitted(shuffled(40)))
