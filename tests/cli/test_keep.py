"""--keep: the network chosen from a sweep or a comparison is saved, and evaluate measures it."""

import json
import shlex

import pytest
import yaml
from helpers import fails, folder, run
from test_runs import FACTORY

SHARED = ("--strategy", "linear", "--num-exits", "2", "--epochs", "2", "--batch-size", "16")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("keep")
    (base / "net.py").write_text(FACTORY)
    folder(base / "images", 40)
    return base


def call(base, verb, out, *options):
    return (
        *(verb, f"{base}/net.py:small", "--out", str(out), "--data", f"{base}/images"),
        *(*SHARED, *options),
    )


@pytest.mark.parametrize(
    ("verb", "options"),
    [("sweep", ("--alphas", "0,1", "--timed", "0")), ("compare", ("--methods", "shallow-deep"))],
)
@pytest.mark.parametrize("target", [("--max-drop", "100"), ("--budget", "90")])
def test_the_kept_network_can_be_evaluated(base, tmp_path, verb, options, target):
    kept = tmp_path / "my network"
    arguments = call(base, verb, tmp_path / "out", *options, "--keep", str(kept), *target)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "chosen on 12 images" in result.stderr
    assert yaml.safe_load((kept / "run.yaml").read_text())["data"] == f"{base}/images"
    following = shlex.split(result.stderr.partition("Next: ")[2].splitlines()[0])
    assert following[1:3] == ["evaluate", str(kept)]
    measured = run(*following[1:], "--json")
    assert measured.exit_code == 0, measured.output
    found = json.loads(measured.stdout)
    if verb == "sweep":
        points = json.loads((tmp_path / "out" / "sweep.json").read_text())["sweep"]["points"]
        assert any(
            point["accuracy"] == found["accuracy"]
            and point["relative_flops"] == pytest.approx(found["relative_flops"])
            for point in points
        )
    again = run(*arguments, "--overwrite")
    assert again.exit_code == 0, again.output


def test_a_target_that_none_meets_and_options_that_do_not_fit(base, tmp_path, capsys, monkeypatch):
    sweep = ("--alphas", "0.5", "--timed", "0")
    keep = ("--keep", str(tmp_path / "kept"))
    result = run(*call(base, "sweep", tmp_path / "a", *sweep, *keep, "--budget", "1"))
    assert "No network is within budget=0.01: the cheapest has" in str(result.exception)
    assert (tmp_path / "a" / "sweep.json").exists()
    assert not (tmp_path / "kept").exists()
    for wrong in (keep, ("--budget", "50"), (*keep, "--budget", "50", "--max-drop", "1")):
        code, error = fails(
            capsys, monkeypatch, *call(base, "sweep", tmp_path / "b", *sweep, *wrong)
        )
        assert code == 2
        assert "needs one of" in " ".join(error.replace("│", " ").split())
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "exit_config.json").write_text("{}")
    code, error = fails(
        capsys,
        monkeypatch,
        *call(base, "sweep", tmp_path / "b", *sweep, *keep, "--budget", "50"),
    )
    assert code == 1
    assert "pass --overwrite to replace it" in error
    assert not (tmp_path / "b").exists()
