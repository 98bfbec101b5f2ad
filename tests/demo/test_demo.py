"""The demo on scikit-learn's digits, in its quick form, and the parts it is made of."""

import json

import pytest
import scipy.stats
import torch
from typer.testing import CliRunner

from leenet_fx.cli import app
from leenet_fx.data.digits import SPLITS, load_digits, place
from leenet_fx.demo.run import rank_correlation
from leenet_fx.report.results import Criterion, Result, environment
from leenet_fx.storage.files import write_atomically


def test_digits_are_split_once_and_placed_by_seed():
    one, two, other = load_digits(3, views=2), load_digits(3, views=2), load_digits(4, views=2)
    assert sum(SPLITS.values()) == 1797
    for name, size in SPLITS.items():
        assert len(one[name]) == 2 * size
        assert torch.equal(one[name].images, two[name].images)
        assert not torch.equal(one[name].images, other[name].images)
        assert torch.equal(one[name].labels, other[name].labels)
        assert one[name].images.shape[1:] == (1, 32, 32)


def test_difficulty_0_is_the_plain_digit_in_the_middle():
    glyph = torch.zeros(2, 1, 8, 8)
    glyph[:, :, 2:6, 3:5] = 1
    placed = place(glyph, torch.zeros(2), torch.Generator().manual_seed(0))
    assert torch.equal(placed[0], placed[1])
    assert torch.allclose(placed, placed.flip(2), atol=1e-5)
    assert torch.allclose(placed, placed.flip(3), atol=1e-5)
    assert float(placed.max()) == pytest.approx(1, abs=0.01)


def test_images_get_harder_with_difficulty():
    glyphs = load_digits(0, views=1)["test"].images[:200, :, ::4, ::4].clamp(0, 1)
    clean = place(glyphs, torch.zeros(200), torch.Generator().manual_seed(1))
    distances = [
        float(
            (place(glyphs, torch.full((200,), d), torch.Generator().manual_seed(1)) - clean).norm()
        )
        for d in (0.2, 0.5, 1.0)
    ]
    assert distances == sorted(distances)


def test_rank_correlation_is_spearmans():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(200, generator=generator)
    b = torch.randint(0, 4, (200,), generator=generator) + (a > 0.5)
    expected = scipy.stats.spearmanr(a.numpy(), b.numpy()).statistic
    assert rank_correlation(a, b) == pytest.approx(float(expected), abs=1e-6)


def test_the_quick_demo_leaves_its_results(tmp_path):
    result = CliRunner().invoke(app.app, ["demo", "--quick", "--output", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "demo.json").read_text())
    assert set(found) == {"command", "environment", "rows", "figures"}
    assert json.loads(result.stdout) == found
    row = found["rows"][0]
    assert sum(row["shares"]) == pytest.approx(1)
    assert {"name", "value", "unit", "asked", "met"} == set(found["figures"][0])
    for name in ("demo-network.png", "demo-tradeoff.png", "demo-exits.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "| FLOPs saved |" in (tmp_path / "demo.md").read_text()
    assert "final" in (tmp_path / "demo.txt").read_text()


def test_results_render_as_markdown(tmp_path):
    result = Result(
        "make it",
        [{"a": 1, "b": 0.5}, {"a": 2, "c": None}],
        [Criterion("speed", 12.3456, "s", "≤ 20", True)],
        environment(),
    )
    result.write(tmp_path / "deep" / "x.json", "Title")
    assert json.loads((tmp_path / "deep" / "x.json").read_text())["rows"][1] == {"a": 2, "c": None}
    text = (tmp_path / "deep" / "x.md").read_text()
    assert "# Title" in text
    assert "| speed | 12.35 s | ≤ 20 | yes |" in text
    assert "| a | b | c |" in text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "kept.json"
    write_atomically(file, "old")
    with pytest.raises(TypeError):
        write_atomically(file, 7)
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"]
