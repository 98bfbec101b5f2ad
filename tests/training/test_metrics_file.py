"""Metrics: losses of each epoch as CSV and as TensorBoard events."""

import csv
import math

import pytest
from helpers import attached, loader

import leenet_fx
from leenet_fx.training.metrics import FILE, Epoch, FiniteMean, NotFiniteError, write_metrics


def read_rows(folder):
    return list(csv.DictReader((folder / FILE).read_text().splitlines()))


def test_the_csv_file_has_a_row_for_each_epoch(tmp_path):
    history = [Epoch("exits", 1, 0.5, None, 2.0), Epoch("gates", 1, 0.25, 0.75, 1.0)]
    write_metrics(tmp_path, history)
    assert read_rows(tmp_path) == [
        {"phase": "exits", "epoch": "1", "train_loss": "0.5", "val_loss": "", "seconds": "2.0"},
        {
            "phase": "gates",
            "epoch": "1",
            "train_loss": "0.25",
            "val_loss": "0.75",
            "seconds": "1.0",
        },
    ]


def test_a_mean_over_samples_weights_batches_by_size():
    mean = FiniteMean("train")
    mean.add(1.0, 3)
    mean.add(5.0, 1)
    assert mean.value == 2.0
    with pytest.raises(NotFiniteError, match="nan in train batch 3"):
        mean.add(math.nan, 2)


def test_tensorboard_events_hold_every_epoch(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = leenet_fx.fit(
        attached(), loader(), loader(), epochs=2, out=tmp_path, tensorboard=True, method="leenet"
    )
    assert list(tmp_path.glob("events.out.tfevents*"))
    events = accumulators.EventAccumulator(str(tmp_path)).Reload()
    for phase in ("exits", "gates"):
        for kind in ("train_loss", "val_loss"):
            scalars = events.Scalars(f"{phase}/{kind}")
            history = [epoch for epoch in result.history if epoch.phase == phase]
            assert [scalar.step for scalar in scalars] == [epoch.epoch for epoch in history]
            expected = [getattr(epoch, kind) for epoch in history]
            assert [scalar.value for scalar in scalars] == pytest.approx(expected, rel=1e-6)
