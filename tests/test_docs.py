"""The documentation: its code runs, the outputs shown are real, the API page is complete."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import leenet_fx
from leenet_fx.methods import list_method_options, method
from leenet_fx.parts import gates
from placement import strategies

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page):
    """Run a page's Python; yield what each block printed, and the output shown, if any."""
    blocks = BLOCK.findall((DOCS / "pages" / page).read_text())
    scope = {}
    for index, (language, code) in enumerate(blocks):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), scope)
        follows = blocks[index + 1] if index + 1 < len(blocks) else ("", "")
        yield printed.getvalue(), follows[1] if follows[0] == "text" else None


def test_how_it_works_shows_what_is_printed(monkeypatch):
    # The page registers a gate, a method and a strategy; later tests must not see them.
    for registry in (gates._gates, method._methods):
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    monkeypatch.setattr(strategies, "_strategies", dict(strategies._strategies))
    shown = [(printed, output) for printed, output in run("how.md") if output is not None]
    assert len(shown) == 11
    for printed, output in shown:
        assert printed == output


def test_time_shows_what_is_printed():
    shown = [(printed, output) for printed, output in run("speed.md") if output is not None]
    assert len(shown) == 2
    for printed, output in shown:
        assert printed == output


def test_ten_minutes_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = [text for text, _ in run("start.md")]
    assert any("3 exits" in text for text in printed)
    assert any("accuracy" in text and "random exiting" in text for text in printed)
    assert (tmp_path / "my-exits" / "exits.safetensors").exists()


def test_deployment_shows_what_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = [(printed, output) for printed, output in run("deployment.md") if output is not None]
    assert len(shown) == 3
    for printed, output in shown:
        assert printed == output


def test_serving_shows_what_is_printed(tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    monkeypatch.chdir(tmp_path)
    ((printed, output),) = run("serving.md")
    assert printed == output


def test_tiers_show_what_is_printed():
    shown = [(printed, output) for printed, output in run("tiers.md") if output is not None]
    assert len(shown) == 2
    for printed, output in shown:
        assert printed == output


def test_methods_lists_every_method_and_its_options(monkeypatch):
    text = (DOCS / "pages" / "methods.md").read_text()
    row = r"^\| `([\w-]+)` \|(?:[^|\n]*\|){4}([^|\n]*)\|[^|\n]*\|[^|\n]*\|$"
    rows = re.findall(row, text, re.MULTILINE)
    table = {name: re.findall(r"`(\w+)`", options) for name, options in rows}
    ours = [name for name in leenet_fx.list_methods() if not name.startswith("test-")]
    assert table == {name: list_method_options(name) for name in ours}
    # The page registers a method; later tests must not see it.
    monkeypatch.setattr(method._methods, "_parts", dict(method._methods._parts))
    shown = [(printed, output) for printed, output in run("methods.md") if output is not None]
    assert len(shown) == 2
    for printed, output in shown:
        assert printed == output


def test_the_api_page_has_every_public_name():
    text = (DOCS / "pages" / "api.md").read_text()
    listed = re.findall(r"^::: leenet_fx\.[\w.]+\.(\w+)$", text, re.MULTILINE)
    aliases = set(re.findall(r"`(\w+)`", text))
    assert len(listed) == len(set(listed))
    missing = set(leenet_fx.__all__) - set(listed) - aliases - {"__version__"}
    assert not missing


def test_the_pages_build_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    command += ["-f", str(DOCS / "mkdocs.yml"), "-d", str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    pages = {path.stem for path in (DOCS / "pages").glob("*.md")}
    assert pages <= {path.stem for path in (tmp_path / "site").glob("*.html")}
    api = (tmp_path / "site" / "api.html").read_text()
    assert "cross-entropy" in api.lower()
