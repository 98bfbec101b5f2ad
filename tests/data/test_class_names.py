"""Class names of data sets, kept by networks and compared with other data."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import attached, data, folder
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)
from torchvision.datasets import ImageFolder

import leenet_fx
from leenet_fx import InputError, make_transform, open_data
from leenet_fx.data.class_names import class_names_of, read_class_names
from leenet_fx.evaluation.comparison import MethodSpec

NAMES = ("ant", "bee", "cat", "dog", "eel")


class Named(TensorDataset):
    def __init__(self, names, count=40, **attributes):
        super().__init__(*data(count))
        self.classes = names
        for name, value in attributes.items():
            setattr(self, name, value)


def loader(names=NAMES, **attributes):
    return DataLoader(Named(names, **attributes), batch_size=20)


def fitted(names=NAMES):
    ee = attached()
    leenet_fx.fit(ee, loader(names), epochs=1)
    return ee


def test_names_are_found_through_loaders_subsets_and_caches(tmp_path):
    named = Named(list(NAMES))
    images = folder(tmp_path / "images")
    opened = open_data(images)
    transform = make_transform(torch.nn.Identity(), (3, 8, 8))
    colours = ("blue", "green", "red")
    with leenet_fx.cache_features(attached(), DataLoader(Subset(named, range(9)), 3)) as cache:
        assert class_names_of(cache) == NAMES
    for source, names in [
        (named, NAMES),
        (Subset(Subset(named, range(30)), range(5)), NAMES),
        (DataLoader(Subset(named, [3])), NAMES),
        (ConcatDataset([named, Subset(named, [1])]), NAMES),
        (opened, colours),
        (opened.loader("val", transform, 4), colours),
        (opened.splits["test"], colours),
        (ImageFolder(images), colours),
        (open_data("digits").loader("val", transform, 4), tuple("0123456789")),
        (Named([("tench", "Tinca tinca"), "shark"]), ("tench, Tinca tinca", "shark")),
        # Not known: no names, names of other labels, or no names at all.
        (TensorDataset(torch.zeros(3)), None),
        (ConcatDataset([named, TensorDataset(*data(4))]), None),
        (Named(NAMES, target_transform=lambda label: 4 - label), None),
        (Subset(Named(NAMES, target_transform=abs), [0]), None),
        (Named(5), None),
        (Named("abcde"), None),
        (Named([]), None),
        (Named([0, 1, 2]), None),
        ([data(4)], None),
        (None, None),
    ]:
        assert class_names_of(source) == names, source


class Streamed(IterableDataset):
    classes = NAMES

    def __iter__(self):
        return iter(zip(*data(10), strict=True))


def test_names_of_a_stream_are_found_though_it_has_no_length():
    loader = DataLoader(Streamed(), batch_size=5)
    assert class_names_of(loader) == NAMES
    assert class_names_of(SimpleNamespace(loader=loader)) == NAMES


def test_a_wrapper_that_may_change_labels_has_no_names():
    class Shuffled(Dataset):
        def __init__(self, dataset):
            self.dataset = dataset

    assert class_names_of(DataLoader(Shuffled(Named(NAMES)))) is None


def test_fit_keeps_the_names_and_saves_them(tmp_path):
    ee = attached()
    assert ee.spec.class_names is None
    leenet_fx.fit(ee, loader(), epochs=1, out=tmp_path / "run")
    assert ee.spec.class_names == NAMES
    leenet_fx.fit(ee, [data(40)], epochs=1)
    assert ee.spec.class_names == NAMES
    again = leenet_fx.load(tmp_path / "run", attached())
    assert again.spec.class_names == NAMES
    assert json.loads((tmp_path / "run" / "exit_config.json").read_text())["class_names"] == [
        *NAMES
    ]
    leenet_fx.evaluate(again, loader())


OTHERS = [
    (("ant", "bee", "cow", "dog", "eel"), "Class 2 is 'cat' in the network and 'cow' in "),
    (("ant", "bee", "dog", "cat", "eel"), "Class 2 is 'cat' .* and 'dog' .*another order"),
    (NAMES[:4], "Class 4 is 'eel' in the network and absent in "),
    ((*NAMES, "fox"), "Class 5 is absent in the network and 'fox' in "),
]


@pytest.mark.parametrize(("names", "message"), OTHERS)
def test_other_classes_than_the_networks_are_an_error_and_change_nothing(tmp_path, names, message):
    ee = fitted()
    before = {key: value.clone() for key, value in ee.state_dict().items()}
    policy = ee.policy
    other = loader(names)
    calls = [
        lambda: leenet_fx.fit(ee, other, epochs=1, out=tmp_path / "x"),
        lambda: leenet_fx.fit(ee, [data(9)], other, epochs=1),
        lambda: leenet_fx.fit(ee, loader(), calibration=other, epochs=1, method="leenet"),
        lambda: leenet_fx.evaluate(ee, other),
        lambda: leenet_fx.sweep(ee, loader(), other, epochs=1),
        lambda: leenet_fx.sweep(ee, loader(), loader(), calibration=other, epochs=1),
    ]
    for call in calls:
        with pytest.raises(InputError, match=message):
            call()
    with leenet_fx.cache_features(ee, other) as cache, pytest.raises(InputError, match=message):
        leenet_fx.fit(ee, cache, epochs=1)
    assert ee.policy is policy
    assert ee.spec.class_names == NAMES
    assert all(torch.equal(value, before[key]) for key, value in ee.state_dict().items())
    assert not (tmp_path / "x").exists()


def test_data_of_one_call_must_have_the_same_classes():
    other = loader(("ant", "bee", "dog", "cat", "eel"))
    with pytest.raises(InputError, match="Class 2 is 'cat' in train and 'dog' in val"):
        leenet_fx.fit(attached(), loader(), other, epochs=1)
    from networks import images, tiny

    with pytest.raises(InputError, match="Class 2 is 'cat' in train and 'dog' in test"):
        leenet_fx.compare(
            tiny(),
            [MethodSpec("a", "shallow-deep")],
            loader(),
            loader(),
            other,
            example_inputs=images(1, 3, 16, 16),
        )
    with pytest.raises(InputError, match="Class 2 is 'cat' in the first data set and 'dog' in"):
        class_names_of(ConcatDataset([loader().dataset, other.dataset]))


def test_names_of_another_number_of_classes_are_not_adopted():
    ee = attached()
    with pytest.raises(
        InputError, match=r"train has 3 classes, the final classifier 5.*num_classes=3"
    ):
        leenet_fx.fit(ee, loader(("a", "b", "c")), epochs=1)
    assert ee.spec.class_names is None


def test_a_finished_run_of_other_classes_is_not_resumed(tmp_path):
    leenet_fx.fit(attached(), loader(), epochs=1, out=tmp_path / "run")
    ee = attached()
    before = {key: value.clone() for key, value in ee.state_dict().items()}
    with pytest.raises(InputError, match=r"Class 0 is 'ant' in '.*run' and 'bat' in train"):
        leenet_fx.fit(ee, loader(("bat", *NAMES[1:])), epochs=1, out=tmp_path / "run", resume=True)
    assert all(torch.equal(value, before[key]) for key, value in ee.state_dict().items())
    leenet_fx.fit(ee, loader(), epochs=1, out=tmp_path / "run", resume=True)
    assert ee.spec.class_names == NAMES


def test_class_names_are_read_from_a_text_file(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffkätzchen\r\n two words\r\n\r\n10\n".encode())
    assert read_class_names(path) == ("kätzchen", " two words", "10")
    path.write_bytes(b"\n\n")
    with pytest.raises(InputError, match="has no class names; expected one a line"):
        read_class_names(path)
    path.write_bytes(b"\xff\xfe\x00")
    for unreadable in (path, tmp_path / "missing.txt"):
        with pytest.raises(InputError, match=r"Class names '.*' cannot be read"):
            read_class_names(unreadable)
