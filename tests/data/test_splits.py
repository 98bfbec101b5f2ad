"""Splits of folders, tar files and torchvision's data sets."""

import tarfile
from pathlib import Path

import pytest
import torch
from helpers import folder, labels_and_shades
from hypothesis import given
from hypothesis import strategies as st
from networks import images, shared, tiny

import leenet_fx
from leenet_fx import InputError, make_transform, open_data
from leenet_fx.data.splits import NAMES, split_each_class


def tarred(path, target):
    with tarfile.open(target, "w") as tar:
        for file in sorted(path.rglob("*.png")):
            tar.add(file, arcname=str(file.relative_to(path)))
    return target


def test_single_folder_is_split_within_each_class_in_order(tmp_path):
    data = open_data(folder(tmp_path / "images"))
    assert data.classes == ("blue", "green", "red")
    expected = {"train": range(14), "val": range(14, 16)}
    expected |= {"calibration": range(16, 18), "test": range(18, 20)}
    for split, numbers in expected.items():
        assert labels_and_shades(data, split) == [(c, n) for c in range(3) for n in numbers]
        assert data.splits[split].targets == [c for c in range(3) for _ in numbers]


def test_tar_file_equals_its_folder(tmp_path):
    images = folder(tmp_path / "images")
    tar = open_data(tarred(images, tmp_path / "images.tar"))
    for split in NAMES:
        assert labels_and_shades(tar, split) == labels_and_shades(open_data(images), split)


def test_folders_of_train_val_and_test(tmp_path):
    folder(tmp_path / "train")
    tarred(folder(tmp_path / "other", 10), tmp_path / "test.tar")
    data = open_data(tmp_path)
    assert labels_and_shades(data, "train") == [(c, n) for c in range(3) for n in range(18)]
    assert labels_and_shades(data, "val") == [(c, n) for c in range(3) for n in range(18, 20)]
    assert labels_and_shades(data, "calibration") == [(c, n) for c in range(3) for n in range(5)]
    assert labels_and_shades(data, "test") == [(c, n) for c in range(3) for n in range(5, 10)]
    folder(tmp_path / "val", 4)
    data = open_data(tmp_path)
    assert len(data.splits["train"]) == 60
    assert labels_and_shades(data, "val") == [(c, n) for c in range(3) for n in range(4)]


@given(
    targets=st.lists(st.integers(0, 3), min_size=1, max_size=200),
    shares=st.sampled_from([(0.5, 0.5), (0.9, 0.1), (0.7, 0.1, 0.1, 0.1)]),
)
def test_parts_are_complete_disjoint_and_stratified(targets, shares):
    try:
        parts = split_each_class(targets, shares)
    except InputError:
        assert min(targets.count(c) for c in set(targets)) < 2 / min(shares)
        return
    assert sorted(index for part in parts for index in part) == list(range(len(targets)))
    for part, share in zip(parts, shares, strict=True):
        for label in set(targets):
            assert abs(sum(targets[i] == label for i in part) - share * targets.count(label)) <= 1


def test_folders_that_do_not_match_raise(tmp_path):
    folder(tmp_path / "train")
    with pytest.raises(InputError, match="neither val nor test"):
        open_data(tmp_path)
    folder(tmp_path / "test", classes=["red", "blue"])
    with pytest.raises(InputError, match="'green' is not in both"):
        open_data(tmp_path)
    few = folder(tmp_path / "few", 3)
    with pytest.raises(InputError, match="has 3 images, too few"):
        open_data(few)


def test_torchvision_data_sets_are_opened_by_name(tmp_path):
    """Small files in the form of the unpacked CIFAR-10."""
    import hashlib
    import pickle

    from torchvision import datasets

    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    names = [name for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list]
    sums = {}
    for name in names:
        content = {
            "data": torch.zeros(40, 3072, dtype=torch.uint8).numpy(),
            "labels": [*range(10)] * 4,
        }
        (base / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    meta = {"label_names": [f"class {label}" for label in range(10)]}
    (base / "batches.meta").write_bytes(pickle.dumps(meta))
    patch = pytest.MonkeyPatch()
    with patch.context() as changed:
        for split in ("train_list", "test_list"):
            listed = [[name, sums[name]] for name, _ in getattr(datasets.CIFAR10, split)]
            changed.setattr(datasets.CIFAR10, split, listed)
        entry = {
            **datasets.CIFAR10.meta,
            "md5": hashlib.md5((base / "batches.meta").read_bytes()).hexdigest(),
        }
        changed.setattr(datasets.CIFAR10, "meta", entry)
        data = open_data("CIFAR10", root=tmp_path)
    assert data.classes[3] == "class 3"
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 180,
        "val": 20,
        "calibration": 20,
        "test": 20,
    }


def test_digits_have_the_splits_of_other_data():
    data = open_data("digits")
    assert data.classes == tuple("0123456789")
    assert tuple(data.splits) == NAMES
    sizes = [len(data.splits[name]) for name in NAMES]
    assert sizes == [8 * 800, 4 * 250, 8 * 250, 4 * 497]
    x, labels = next(iter(data.loader("test", make_transform(torch.nn.Identity(), (3, 32, 32)), 8)))
    assert x.shape == (8, 3, 32, 32)
    assert len(labels) == 8


@pytest.mark.skipif(shared("data/cifar10") is None, reason="needs the shared CIFAR-10 tars")
def test_splits_of_cifar10_are_those_of_the_benchmarks():
    data = open_data(Path(shared("data/cifar10")))
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sizes == {"train": 45000, "val": 5000, "calibration": 5000, "test": 5000}
    numbers = {
        "train": (0, 4499),
        "val": (4500, 4999),
        "calibration": (0, 499),
        "test": (500, 999),
    }
    for name, (first, last) in numbers.items():
        split = data.splits[name]
        names = split.dataset.names
        files = [int(Path(names[i]).stem) for i in split.indices]
        assert (min(files), max(files)) == (first, last)
        assert len(set(files)) == last - first + 1


def test_label_beyond_the_classes_of_the_head_raises(tmp_path):
    data = open_data(folder(tmp_path / "images"))
    ee = leenet_fx.attach(tiny(classes=2), "every", example_inputs=images(1, 3, 16, 16))
    loader = data.loader("train", make_transform(tiny(), (3, 16, 16)), 50)
    with pytest.raises(InputError, match="train has 3 classes, the final classifier 2"):
        leenet_fx.fit(ee, loader, epochs=1, method="leenet")
    with pytest.raises(InputError, match="label 2, but the final classifier has 2 classes"):
        leenet_fx.fit(ee, list(loader), epochs=1, method="leenet")
