import warnings

import pytest
import torch
from networks import ZOO

import leenet_fx


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=ZOO, ids=lambda name: name.replace("/", "-"))
def zoo_model(request):
    """(name, model in evaluation mode, image size, another size or None)."""
    options, size, other = ZOO[request.param]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = leenet_fx.create_model(request.param, **options)
    return request.param, model.eval(), size, other
