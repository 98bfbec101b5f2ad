"""PABEE."""

from helpers import data, loader
from method_helpers import attached_for

import leenet_fx
from leenet_fx import Patience


def test_the_methods_patience_is_not_that_of_early_stopping():
    ee = attached_for("pabee")
    result = leenet_fx.fit(
        ee,
        loader(48),
        loader(24),
        method=leenet_fx.get_method("pabee", patience=1),
        epochs=2,
        patience=2,
    )
    assert len(result.history) == 2
    assert ee.policy == Patience(1)
    # A patience of 1 needs two exits.
    assert ee.predict(data()[0]).exit_index.min() == 1
