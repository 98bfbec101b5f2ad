"""Tar files are labelled as the folders that were packed."""

import io
import logging
import tarfile

import pytest
from helpers import folder, labels_and_shades
from test_folders import layout

from leenet_fx import InputError, open_data
from leenet_fx.data.images import ImageFiles, open_files
from leenet_fx.data.splits import NAMES


def packed(tree, target, prefix="", mode="w"):
    with tarfile.open(target, mode) as tar:
        tar.add(tree, arcname=prefix or ".")
    return target


def made(target, *members):
    """A tar file of (name, content) and (name, type, target of a link)."""
    with tarfile.open(target, "w") as tar:
        for name, *rest in members:
            entry = tarfile.TarInfo(name)
            if len(rest) == 2:
                entry.type, entry.linkname = rest
                tar.addfile(entry)
            else:
                entry.size = len(rest[0])
                tar.addfile(entry, io.BytesIO(rest[0]))
    return target


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Bytes of images: 3 classes of 20."""
    base = folder(tmp_path_factory.mktemp("content"))
    return {str(path.relative_to(base)): path.read_bytes() for path in base.rglob("*.png")}


@pytest.mark.parametrize("seed", range(12))
def test_a_packed_folder_has_the_labels_of_the_folder(tmp_path, seed):
    tree = layout(tmp_path / "tree", seed)
    prefix = ["", "./", "images", "a/b/c", "/data/images", "../images"][seed % 6]
    found = ImageFiles(packed(tree, tmp_path / "images.tar", prefix))
    expected = ImageFiles(tree)
    assert found.classes == expected.classes
    assert found.names == expected.names
    assert found.targets == expected.targets


@pytest.mark.parametrize("prefix", ["", "images"])
def test_images_of_a_packed_folder_are_read(tmp_path, prefix):
    tree = folder(tmp_path / "tree")
    tar = packed(tree, tmp_path / "images.TAR", prefix)
    for split in NAMES:
        assert labels_and_shades(open_data(tar), split) == labels_and_shades(open_data(tree), split)


def test_links_stand_for_their_targets_once(tmp_path, content, caplog):
    members = list(content.items())
    links = [
        ("red/hard.png", tarfile.LNKTYPE, "red/0003.png"),
        ("blue/soft.png", tarfile.SYMTYPE, "0001.png"),
        ("green/chain.png", tarfile.SYMTYPE, "soft2.png"),
        ("green/soft2.png", tarfile.SYMTYPE, "./0002.png"),
        ("green/outside.png", tarfile.SYMTYPE, "/etc/image.png"),
        ("green/circle.png", tarfile.SYMTYPE, "circle.png"),
    ]
    with caplog.at_level(logging.WARNING, "leenet_fx"):
        files = open_files(made(tmp_path / "x.tar", *members, *links))
    assert len(files) == 60
    assert "2 links to no file" in caplog.text
    assert "skipped 4 links" in caplog.text
    only_linked = [member for member in members if member[0] != "red/0003.png"]
    moved = ("store/0003.png", content["red/0003.png"])
    moved_link = ("red/0003.png", tarfile.SYMTYPE, "../store/0003.png")
    with pytest.raises(InputError, match=r"'red/0003.png' and 'store/0003.png' are the same file"):
        open_files(made(tmp_path / "y.tar", *only_linked, moved, moved_link))


def test_the_last_of_two_members_of_one_name_counts(tmp_path, content):
    members = [("red/0000.png", b"old"), *content.items()]
    files = open_files(made(tmp_path / "x.tar", *members))
    assert len(files) == 60
    assert all(files[index][0].size == (12, 10) for index in range(60))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "cat/1.png"], "1 images outside class folders, such as '1.png'"),
        (["images/1.png", "images/2.png"], "one class folder, 'images'"),
        (["images/cat/1.png"], "one class folder, 'cat'"),
        (["cat/1.txt", "dog.tar"], r"no images in class folders \(skipped: 1 .tar, 1 .txt\)"),
        (["train/cat/1.png", "val/cat/1.png", "docs/1.png"], "which are parts of a data set"),
    ],
)
def test_a_tar_file_without_two_classes_is_an_error(tmp_path, names, message):
    tar = made(tmp_path / "x.tar", *((name, b"") for name in names))
    with pytest.raises(InputError, match=message):
        open_files(tar)


def test_hidden_members_and_empty_folders(tmp_path, content):
    hidden = [("._red/0001.png", b"x"), ("red/._0001.png", b"x"), ("./.DS_Store", b"x")]
    assert len(open_files(made(tmp_path / "x.tar", *content.items(), *hidden))) == 60
    empty = ("yellow", tarfile.DIRTYPE, "")
    with pytest.raises(InputError, match=r"Class folder '.*yellow' has no images"):
        open_files(made(tmp_path / "y.tar", *content.items(), empty))


def test_a_damaged_tar_file_is_an_error(tmp_path, content):
    whole = made(tmp_path / "x.tar", *sorted(content.items())).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) // 2 + 100])
    header = whole.index(b"green/0007.png")
    torn = tmp_path / "torn.tar"
    torn.write_bytes(whole[:header] + b"garbage" * 10 + whole[header + 70 :])
    packed_twice = packed(folder(tmp_path / "tree", 2), tmp_path / "z.tar", mode="w:gz")
    for damaged in (cut, torn, packed_twice):
        with pytest.raises(InputError, match="cannot be read"):
            open_files(damaged)
