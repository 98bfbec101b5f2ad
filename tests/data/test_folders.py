"""Labels of folders: torchvision's order, and what is no image or no class."""

import logging
import os
import random

import pytest
from helpers import COLOURS, folder, labels_and_shades
from PIL import Image
from torchvision.datasets import ImageFolder

from leenet_fx import InputError, open_data
from leenet_fx.data.images import ImageFiles, open_files

CLASSES = [
    "1",
    "2",
    "10",
    "A",
    "a",
    "B",
    "b",
    "Zug",
    "zug",
    "é",
    "Ä",
    "cat",
    "cat-2",
    "cat 2",
    "_x",
]
INNER = ["images", "Images", "b", "b-2", "2", "10", "ß"]
FILES = ["1.png", "2.png", "10.png", "a.JPG", "A.jpg", "b.jpeg", "ü.webp", "x.tif", "x.y.ppm"]


def touched(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def picture(path, colour=(9, 9, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)
    return path


def layout(base, seed):
    """A random tree of empty image files, each class with one at least."""
    draw = random.Random(seed)
    for name in draw.sample(CLASSES, draw.randint(2, len(CLASSES))):
        for _ in range(draw.randint(1, 8)):
            inner = [draw.choice(INNER) for _ in range(draw.randint(0, 3))]
            touched(base.joinpath(name, *inner, draw.choice(FILES)))
    return base


@pytest.mark.parametrize("seed", range(40))
def test_classes_and_files_are_in_the_order_of_torchvisions_image_folder(tmp_path, seed):
    found, expected = ImageFiles(layout(tmp_path, seed)), ImageFolder(tmp_path)
    assert list(found.classes) == expected.classes
    assert found.targets == expected.targets
    assert [str(tmp_path / name) for name in found.names] == [path for path, _ in expected.samples]


def test_classes_that_are_given_number_the_labels(tmp_path):
    images = folder(tmp_path / "images")
    data = open_data(images, classes=["red", "blue", "green"])
    assert data.classes == ("red", "blue", "green")
    red = [index for index, label in enumerate(data.splits["test"].targets) if label == 0]
    assert {data.splits["test"][index][0].getpixel((0, 0))[1:] for index in red} == {(0, 0)}
    for given, message in [
        (
            ["red", "blue", "grene"],
            r"'grene' is no class folder \(did you mean 'green'\?\); 'green'",
        ),
        (["red", "blue"], "'green' missing"),
        (["red", "blue", "green", "Green"], "'Green' is no class folder"),
        (["red", "blue", "green", "red"], "'red' given twice"),
    ]:
        with pytest.raises(InputError, match=message):
            open_data(images, classes=given)
    with pytest.raises(InputError, match=r"classes= \(--classes\).* are for folders"):
        open_data("digits", classes=list("9876543210"))


def test_what_pillow_reads_is_an_image_and_the_rest_is_counted(tmp_path, caplog):
    names = ["a.png", "b.webp", "c.GIF", "d.jp2", "e.tga", "f.avif", "g.bmp"]
    for label in ("cat", "dog"):
        for name in names:
            picture(tmp_path / label / name)
        touched(tmp_path / label / "notes.txt")
    touched(tmp_path / "cat" / "boxes.csv")
    touched(tmp_path / "README")
    touched(tmp_path / "cat" / ".DS_Store")
    touched(tmp_path / "cat" / "scan.h5")
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        files = open_files(tmp_path)
    assert sorted(set(files.names)) == sorted(f"{c}/{n}" for c in ("cat", "dog") for n in names)
    assert [files[index][0].size for index in range(len(files))] == [(4, 4)] * len(files)
    (record,) = caplog.records
    assert "2 .txt, 1 without extension, 1 .csv, 1 .h5" in record.getMessage()


def test_hidden_folders_are_no_classes_and_inner_folders_belong_to_the_class(tmp_path):
    for name in ("cat/1.png", "cat/originals/1.png", "cat/a/b/c/1.png", "dog/images/1.png"):
        picture(tmp_path / name)
    for name in (".ipynb_checkpoints/1.png", "cat/.cache/1.png", "dog/._1.png"):
        picture(tmp_path / name)
    files = open_files(tmp_path)
    assert files.classes == ("cat", "dog")
    assert files.names == [
        "cat/1.png",
        "cat/a/b/c/1.png",
        "cat/originals/1.png",
        "dog/images/1.png",
    ]
    assert files.targets == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "2.png"], "2 images outside class folders, such as '1.png'"),
        (["cat/1.png", "dog/1.png", "x.WEBP"], "1 images outside class folders, such as 'x.WEBP'"),
        (["cat/1.png", "cat/2.png"], "one class folder, 'cat', and needs two"),
        (["images/cat/1.png", "images/dog/1.png"], "one class folder, 'images'"),
        (["cat/1.png", "dog/1.txt"], "'.*dog' has no images"),
        (["cat/1.png", "dog/.1.png"], "'.*dog' has no images"),
        (["cat/1.txt", "dog/1.pdf"], r"no images in class folders \(skipped: 1 .pdf, 1 .txt\)"),
        (
            ["test/cat/1.png", "Val/dog/1.png"],
            "contains (test and val|val and test), but not train",
        ),
        (["Train/cat/1.png", "other/dog/1.png"], "contains train, but neither val nor test"),
        (["train/1.png", "test/1.png"], "parts of a data set and not classes"),
        (["val/a/1.png", "valid/a/1.png", "train/a/1.png"], "both are the val part"),
    ],
)
def test_a_layout_without_two_class_folders_is_an_error(tmp_path, names, message):
    for name in names:
        touched(tmp_path / name)
    with pytest.raises(InputError, match=message):
        open_data(tmp_path)


@pytest.mark.parametrize("names", [("TRAIN", "Val"), ("training", "Testing"), ("Train", "VALID")])
def test_parts_are_found_in_any_case(tmp_path, names):
    folder(tmp_path / names[0])
    folder(tmp_path / names[1], 10)
    data = open_data(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 54,
        "val": 6,
        "calibration": 15,
        "test": 15,
    }


def test_a_class_may_be_named_train(tmp_path):
    folder(tmp_path)
    for index in range(20):
        picture(tmp_path / "train" / f"{index}.png")
    data = open_data(tmp_path)
    assert data.classes == ("blue", "green", "red", "train")


def test_tiny_imagenets_layout_is_read(tmp_path):
    for part, count in (("train", 20), ("test", 4)):
        for name in ("n02", "n01"):
            for index in range(count):
                picture(tmp_path / part / name / "images" / f"{name}_{index:02}.JPEG")
    data = open_data(tmp_path)
    assert data.classes == ("n01", "n02")
    assert data.splits["train"].targets == [0] * 18 + [1] * 18


def test_each_stored_file_is_read_once(tmp_path, caplog):
    images = folder(tmp_path / "images")
    expected = labels_and_shades(open_data(images), "train")
    (images / "blue" / "up").symlink_to("..")
    (images / "green" / "top").symlink_to(tmp_path)
    (images / "red" / "again").symlink_to(images / "red")
    (images / "loop").symlink_to(images)
    (images / "blue" / "0000-link.png").symlink_to("0000.png")
    os.link(images / "red" / "0003.png", images / "red" / "hard.png")
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        data = open_data(images)
    assert data.classes == ("blue", "green", "red")
    assert sorted(labels_and_shades(data, "train")) == expected
    assert sum(len(split) for split in data.splits.values()) == 60
    assert "skipped 6 links" in caplog.text


def test_linked_classes_and_files_are_read_where_they_lead(tmp_path):
    stored = folder(tmp_path / "stored")
    images = tmp_path / "images"
    images.mkdir()
    for name in COLOURS:
        (images / name).symlink_to(stored / name)
    for split in ("train", "test"):
        assert labels_and_shades(open_data(images), split) == labels_and_shades(
            open_data(stored), split
        )


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "link of a folder"])
def test_a_file_in_two_classes_is_an_error(tmp_path, kind):
    images = folder(tmp_path / "images")
    target = images / "blue" / "0004.png"
    if kind == "symbolic link":
        (images / "red" / "x.png").symlink_to(target)
    elif kind == "hard link":
        os.link(target, images / "red" / "x.png")
    else:
        (images / "red" / "inner").symlink_to(images / "blue")
    with pytest.raises(InputError, match=r"'blue/0\d+.png' and 'red/.*' are the same file in two"):
        open_data(images)


def test_a_file_in_two_parts_is_an_error(tmp_path):
    folder(tmp_path / "train")
    folder(tmp_path / "test", 10)
    (tmp_path / "test" / "red" / "new.png").symlink_to(tmp_path / "train" / "red" / "0011.png")
    with pytest.raises(InputError, match=r"'red/0011.png' of train and 'red/new.png' of test"):
        open_data(tmp_path)
    (tmp_path / "test" / "red" / "new.png").unlink()
    (tmp_path / "val").symlink_to(tmp_path / "test")
    with pytest.raises(InputError, match=r"of val and .* of test are the same file"):
        open_data(tmp_path)


def test_a_broken_link_is_an_image_that_cannot_be_read(tmp_path):
    images = folder(tmp_path / "images")
    (images / "red" / "0000.png").unlink()
    (images / "red" / "0000.png").symlink_to("gone.png")
    with pytest.raises(InputError, match=r"1 of 60 images .* cannot be read: red/0000.png"):
        labels_and_shades(open_data(images), "train")
    assert len(open_files(images, skip_bad=True)) == 59


def test_a_class_of_unreadable_images_is_an_error_when_they_are_skipped(tmp_path, caplog):
    images = folder(tmp_path / "images", 2)
    for path in (images / "green").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"'.*green' has no images that can be read"):
        open_files(images, skip_bad=True)
    assert "2 of 6 images" in caplog.text
