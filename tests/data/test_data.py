"""Images from folders, tars and names; splits; what is bad is named."""

import logging
import tarfile
from pathlib import Path

import pytest
import torch
from helpers import folder
from hypothesis import given
from hypothesis import strategies as st
from networks import shared
from PIL import Image

import leenet_fx
from leenet_fx import InputError, UnknownNameError, make_transform, open_data
from leenet_fx.data.splits import split_each_class


def tarred(path, target):
    with tarfile.open(target, "w") as tar:
        for file in sorted(path.rglob("*.png")):
            tar.add(file, arcname=str(file.relative_to(path)))
    return target


def seen(data, split):
    """(label, brightness − 100) of each image of a split."""
    found = []
    for index in range(len(data.splits[split])):
        image, label = data.splits[split][index]
        found.append((label, round(max(image.getpixel((0, 0))) - 100)))
    return found


def test_one_folder_is_split_class_by_class_in_its_order(tmp_path):
    data = open_data(folder(tmp_path / "images"))
    assert data.classes == ("blue", "green", "red")
    expected = {"fit": range(14), "validate": range(14, 16)}
    expected |= {"calibrate": range(16, 18), "report": range(18, 20)}
    for split, numbers in expected.items():
        assert seen(data, split) == [(c, n) for c in range(3) for n in numbers]
        assert data.splits[split].targets == [c for c in range(3) for _ in numbers]


def test_a_tar_is_the_folder_it_was_made_of(tmp_path):
    images = folder(tmp_path / "images")
    tar = open_data(tarred(images, tmp_path / "images.tar"))
    for split in ("fit", "validate", "calibrate", "report"):
        assert seen(tar, split) == seen(open_data(images), split)


def test_train_and_test_beside_each_other(tmp_path):
    folder(tmp_path / "train")
    tarred(folder(tmp_path / "other", 10), tmp_path / "test.tar")
    data = open_data(tmp_path)
    assert seen(data, "fit") == [(c, n) for c in range(3) for n in range(18)]
    assert seen(data, "validate") == [(c, n) for c in range(3) for n in range(18, 20)]
    assert seen(data, "calibrate") == [(c, n) for c in range(3) for n in range(5)]
    assert seen(data, "report") == [(c, n) for c in range(3) for n in range(5, 10)]
    folder(tmp_path / "val", 4)
    data = open_data(tmp_path)
    assert len(data.splits["fit"]) == 60
    assert seen(data, "validate") == [(c, n) for c in range(3) for n in range(4)]


@given(
    targets=st.lists(st.integers(0, 3), min_size=1, max_size=200),
    shares=st.sampled_from([(0.5, 0.5), (0.9, 0.1), (0.7, 0.1, 0.1, 0.1)]),
)
def test_splits_are_whole_disjoint_and_of_every_class(targets, shares):
    try:
        parts = split_each_class(targets, shares)
    except InputError:
        assert min(targets.count(c) for c in set(targets)) < 2 / min(shares)
        return
    assert sorted(index for part in parts for index in part) == list(range(len(targets)))
    for part, share in zip(parts, shares, strict=True):
        for label in set(targets):
            assert abs(sum(targets[i] == label for i in part) - share * targets.count(label)) <= 1


def test_truncated_images_are_named_and_counted_and_skipped_on_request_only(tmp_path, caplog):
    images = folder(tmp_path / "images")
    for name in ("blue/0003.png", "red/0007.png"):
        (images / name).write_bytes((images / name).read_bytes()[:40])
    data = open_data(images)
    with pytest.raises(InputError, match=r"2 of 60 images .*blue/0003.png, red/0007.png"):
        seen(data, "fit")
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        data = open_data(images, skip_bad=True)
    assert "2 of 60 images" in caplog.text
    assert "blue/0003.png, red/0007.png" in caplog.text
    numbers = [n for c, n in seen(data, "fit") if c == 0]
    assert 3 not in numbers
    assert sum(len(split) for split in data.splits.values()) == 58


def test_what_is_not_there_is_named(tmp_path):
    images = folder(tmp_path / "images")
    (images / "yellow").mkdir()
    with pytest.raises(InputError, match=r"Class folder '.*yellow' has no images"):
        open_data(images)
    with pytest.raises(InputError, match=r"No folder or file '.*nowhere'"):
        open_data(tmp_path / "nowhere")
    (tmp_path / "data.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"is no folder and no .tar file"):
        open_data(tmp_path / "data.zip")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match=r"'.*bad.tar' cannot be read"):
        open_data(tmp_path / "bad.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no images in class folders"):
        open_data(tmp_path / "empty")
    with pytest.raises(UnknownNameError, match="Did you mean 'CIFAR10'"):
        open_data("CIFAR01")
    with pytest.raises(InputError, match=r"download=True \(--download\) gets it"):
        open_data("CIFAR10", root=tmp_path)


def test_parts_that_do_not_go_together_are_named(tmp_path):
    folder(tmp_path / "train")
    with pytest.raises(InputError, match="neither val nor test"):
        open_data(tmp_path)
    folder(tmp_path / "test", classes=["red", "blue"])
    with pytest.raises(InputError, match="'green' is not in both"):
        open_data(tmp_path)
    few = folder(tmp_path / "few", 3)
    with pytest.raises(InputError, match="has 3 images, too few"):
        open_data(few)


def test_torchvisions_data_sets_go_by_name(tmp_path):
    """CIFAR-10 as torchvision unpacks it, from files of the same form."""
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
        "fit": 180,
        "validate": 20,
        "calibrate": 20,
        "report": 20,
    }


def test_loaders_give_what_the_model_expects(tmp_path):
    data = open_data(folder(tmp_path / "images"))
    model = torch.nn.Identity()
    model.pretrained_cfg = {"mean": (0.5, 0.0, 0.0), "std": (0.25, 1.0, 1.0)}
    loader = data.loader("fit", make_transform(model, (3, 8, 8)), 16)
    x, labels = next(iter(loader))
    assert x.shape == (16, 3, 8, 8)
    assert labels.tolist() == [0] * 14 + [1] * 2
    blue = 255 * 100 // 255 / 255
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([(0 - 0.5) / 0.25, 0.0, blue]), atol=0.01)
    grey = next(iter(data.loader("fit", make_transform(torch.nn.Identity(), (1, 8, 8)), 4)))[0]
    assert grey.shape == (4, 1, 8, 8)
    augmented = make_transform(model, (3, 64, 64), augment=True)
    assert augmented(data.splits["fit"][0][0]).shape == (3, 64, 64)
    assert make_transform(model, (3, 224, 224), augment=True)(
        Image.new("RGB", (300, 280))
    ).shape == (
        3,
        224,
        224,
    )


def test_torchvision_models_get_their_own_transform():
    found = make_transform(torch.nn.Identity(), (3, 224, 224), name="torchvision/resnet18")
    image = Image.effect_noise((300, 280), 60).convert("RGB")
    from torchvision.models import ResNet18_Weights

    expected = ResNet18_Weights.DEFAULT.transforms()(image)
    assert float((found(image) - expected).abs().mean()) < 0.2


def test_digits_are_split_by_digit():
    data = open_data("digits")
    assert data.classes == tuple("0123456789")
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sizes["fit"] > sizes["report"] > 0
    x, labels = next(
        iter(data.loader("report", make_transform(torch.nn.Identity(), (3, 32, 32)), 8))
    )
    assert x.shape == (8, 3, 32, 32)
    assert len(labels) == 8


@pytest.mark.skipif(shared("data/cifar10") is None, reason="needs the shared CIFAR-10 tars")
def test_the_splits_of_cifar10_are_those_of_every_benchmark():
    data = open_data(Path(shared("data/cifar10")))
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sizes == {"fit": 45000, "validate": 5000, "calibrate": 5000, "report": 5000}
    numbers = {
        "fit": (0, 4499),
        "validate": (4500, 4999),
        "calibrate": (0, 499),
        "report": (500, 999),
    }
    for name, (first, last) in numbers.items():
        split = data.splits[name]
        files = [int(Path(split.dataset._reader.filename(i)).stem) for i in split.indices]
        assert (min(files), max(files)) == (first, last)
        assert len(set(files)) == last - first + 1


def test_a_label_beyond_the_head_is_named(tmp_path):
    from networks import images, tiny

    data = open_data(folder(tmp_path / "images"))
    ee = leenet_fx.attach(tiny(classes=2), "every", example_inputs=images(1, 3, 16, 16))
    loader = data.loader("fit", make_transform(tiny(), (3, 16, 16)), 50)
    with pytest.raises(InputError, match="label 2, but the final classifier has 2 classes"):
        leenet_fx.fit(ee, loader, epochs=1, method="leenet")
