"""Labels of torchvision's data sets."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SVHN

from leenet_fx import InputError, open_data
from leenet_fx.data.torchvision_data import labels_of


def svhn(root, monkeypatch, train, test):
    """Small files in the form of SVHN, whose label 10 stands for 0."""
    for split, labels in (("train", train), ("test", test)):
        pixels = np.zeros((32, 32, 3, len(labels)), dtype=np.uint8)
        savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": np.array([labels]).T})
    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    return open_data("SVHN", root=root)


def test_labels_of_a_data_set_without_names(tmp_path, monkeypatch):
    data = svhn(tmp_path, monkeypatch, list(range(1, 11)) * 10, list(range(1, 11)) * 2)
    assert data.classes == tuple("0123456789")
    assert sorted(set(data.splits["test"].targets)) == list(range(10))
    assert data.image_size() == (32, 32)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            [1, 2, 4, 5] * 10,
            [1, 2, 4, 5] * 2,
            "no image of label 0; expected every label from 0 to 5",
        ),
        ([10, 1, 3] * 10, [10, 1, 3] * 2, "no image of label 2; expected every label from 0 to 3"),
        ([10, 1, 2] * 10, [10, 1, 2, 3] * 2, "label 3; expected every label from 0 to 2"),
        ([10, 1, 2] * 10, [10, 1] * 2, "no image of label 2; expected"),
    ],
)
def test_labels_with_gaps_or_out_of_range_are_an_error(tmp_path, monkeypatch, train, test, message):
    with pytest.raises(InputError, match=f"'SVHN' has {message}"):
        svhn(tmp_path, monkeypatch, train, test)


class Labelled:
    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Image.new("L", (2, 2)), self.labels[index]


class Unlisted(Labelled):
    def __init__(self, labels):
        self.hidden = labels

    def __len__(self):
        return len(self.hidden)

    def __getitem__(self, index):
        return None, self.hidden[index]


@pytest.mark.parametrize("kind", [Labelled, Unlisted])
def test_labels_are_whole_numbers(kind):
    for labels in ([2, 0], torch.tensor([2, 0]), np.array([2, 0], dtype=np.uint8)):
        assert labels_of(kind(labels), "x") == [2, 0]
    for labels in ([0.5, 1.0], torch.tensor([[1, 0], [0, 1]]), ["cat", "dog"], [{"box": 3}, {}]):
        with pytest.raises(InputError, match=r"'x' has the label .* expected one whole number"):
            labels_of(kind(labels), "x")
