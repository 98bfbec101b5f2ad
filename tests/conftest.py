import logging
import warnings

import pytest
import torch
from hypothesis import settings
from networks import ZOO

import leenet_fx

# No test is timed: a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _warnings_are_logged():
    # Some libraries raise the level of the root logger for the rest of the process.
    logger = logging.getLogger("leenet_fx")
    level = logger.level
    if logger.getEffectiveLevel() > logging.WARNING:
        logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module", params=ZOO, ids=lambda name: name.replace("/", "-"))
def zoo_model(request):
    """(name, model in evaluation mode, image size, another size or None)."""
    options, size, other = ZOO[request.param]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = leenet_fx.create_model(request.param, **options)
    return request.param, model.eval(), size, other
