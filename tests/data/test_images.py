"""Image files: unreadable, missing and empty ones."""

import logging

import pytest
from helpers import folder, labels_and_shades

from leenet_fx import InputError, UnknownNameError, open_data


def test_unreadable_images_raise_or_are_skipped_on_request(tmp_path, caplog):
    images = folder(tmp_path / "images")
    for name in ("blue/0003.png", "red/0007.png"):
        (images / name).write_bytes((images / name).read_bytes()[:40])
    data = open_data(images)
    with pytest.raises(InputError, match=r"2 of 60 images .*blue/0003.png, red/0007.png"):
        labels_and_shades(data, "train")
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        data = open_data(images, skip_bad=True)
    assert "2 of 60 images" in caplog.text
    assert "blue/0003.png, red/0007.png" in caplog.text
    numbers = [n for c, n in labels_and_shades(data, "train") if c == 0]
    assert 3 not in numbers
    assert sum(len(split) for split in data.splits.values()) == 58


def test_missing_and_empty_data_raise(tmp_path):
    images = folder(tmp_path / "images")
    (images / "yellow").mkdir()
    with pytest.raises(InputError, match=r"Class folder '.*yellow' has no images"):
        open_data(images)
    with pytest.raises(InputError, match=r"No folder or file '.*nowhere'"):
        open_data(tmp_path / "nowhere")
    (tmp_path / "data.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"is neither a folder nor a .tar file"):
        open_data(tmp_path / "data.zip")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match=r"'.*bad.tar' cannot be read"):
        open_data(tmp_path / "bad.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no images in class folders"):
        open_data(tmp_path / "empty")
    with pytest.raises(UnknownNameError, match="Did you mean 'CIFAR10'"):
        open_data("CIFAR01")
    with pytest.raises(InputError, match=r"download=True \(--download\) downloads it"):
        open_data("CIFAR10", root=tmp_path)
