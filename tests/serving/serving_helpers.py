"""A small network with operating points, saved and exported, and clients of its server."""

import io
from dataclasses import replace

import numpy as np
from fastapi.testclient import TestClient
from helpers import loader
from networks import images, tiny
from PIL import Image

import leenet_fx
from leenet_fx import MaxProbability
from leenet_fx.data.transforms import TransformConfig
from leenet_fx.serving.app import create_app
from leenet_fx.serving.settings import Settings

NAMES = ("ant", "bee", "cat", "dog", "élan")
TRANSFORM = TransformConfig(
    (3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.25), "bicubic", 0.9, "center"
)


def network_with_points():
    """A network with the points "cheap" and "whole", and a policy of its own in use."""
    ee = leenet_fx.attach(tiny(), [0, 2], example_inputs=images(1, 3, 16, 16))
    ee.spec = replace(ee.spec, class_names=NAMES)
    ee.policy = MaxProbability(0.5)
    budgets = {"cheap": 0.7, "whole": 1.0}
    points = [leenet_fx.calibrate(ee, loader(), budget=b, name=n) for n, b in budgets.items()]
    ee.spec = replace(ee.spec, operating_points=tuple(points))
    ee.policy = MaxProbability([0.25, 0.24])
    return ee


def client(network, predictor=None, **settings):
    """A client of an application; used as a context, which starts its stages."""
    app = create_app(network, Settings(**{"rate": 0, **settings}), predictor)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def picture(seed=0, size=(20, 18)):
    """Pixels of an image."""
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    return Image.fromarray(values)


def encoded(image, kind="PNG"):
    """An image file."""
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()
