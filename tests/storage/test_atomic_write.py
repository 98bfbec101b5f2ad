"""Files are written completely or not at all."""

import pytest

from leenet_fx.storage.files import write_atomically


def test_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "kept.json"
    write_atomically(file, "old")
    with pytest.raises(TypeError):
        write_atomically(file, 7)
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]
