"""Classifiers that are added to encoders."""

import pytest
import timm
from captured import EXAMPLE, Encoder, check
from networks import images

import leenet_fx
from leenet_fx import InputError


@pytest.mark.parametrize("shape", ["maps", "tokens", "vectors"])
def test_a_classifier_is_added_to_an_encoder(shape):
    class Shaped(Encoder):
        def forward(self, x):
            x = super().forward(x)
            if shape == "tokens":
                return x.flatten(2).transpose(1, 2)
            return x.mean((2, 3)) if shape == "vectors" else x

    model = Shaped().eval()
    with pytest.raises(InputError, match="pass num_classes"):
        leenet_fx.attach(model, "every", example_inputs=EXAMPLE)
    ee = leenet_fx.attach(model, "every", example_inputs=EXAMPLE, num_classes=7)
    head = ee.get_submodule(ee.spec.final_classifier)
    assert ee.spec.classifier_is_new
    assert (head.in_features, head.out_features) == (8, 7)
    pooled = Encoder.forward
    check(model, ee, expected=lambda x: head(pooled(model, x).mean((2, 3))))
    assert len(ee.exits) == 4
    assert all(key.startswith("exits.") for key in ee.state_dict().keys() - model.state_dict())


def test_the_classifier_added_to_an_encoder_of_timm_is_that_of_timm():
    model = timm.create_model("resnet18", num_classes=0).eval()
    ee = leenet_fx.attach(model, "every", example_inputs=images(1, 3, 64, 64), num_classes=6)
    reference = timm.create_model("resnet18", num_classes=6).eval()
    reference.load_state_dict(model.state_dict(), strict=False)
    head = ee.get_submodule(ee.spec.final_classifier)
    reference.fc.load_state_dict(head.state_dict())
    check(model, ee, expected=reference, size=64)
