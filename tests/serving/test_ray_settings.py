"""Numbers of replicas."""

import pytest

from leenet_fx.errors import InputError
from leenet_fx.serving.ray_settings import RaySettings, parse_replicas


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", [(2, 2)] * 3),
        ("1-4", [(1, 4)] * 3),
        ("1-4,1, 2 - 3", [(1, 4), (1, 1), (2, 3)]),
    ],
)
def test_replicas_are_for_all_stages_or_for_each(text, expected):
    assert RaySettings(replicas=parse_replicas(text)).of_stages(3) == expected


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "1,,2", "1.5", "1-2-3", "²"])
def test_other_text_is_an_error(text):
    with pytest.raises(InputError, match="replicas must be like"):
        parse_replicas(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": ((0, 1),)}, "replicas"),
        ({"replicas": ((3, 2),)}, "replicas"),
        ({"replicas": ()}, "replicas"),
        ({"cpus": -1.0}, "cpus"),
        ({"cpus": float("nan")}, "cpus"),
        ({"start_seconds": 0.0}, "start_seconds"),
    ],
)
def test_settings_out_of_range_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        RaySettings(**options)


def test_another_number_of_stages_is_an_error():
    with pytest.raises(InputError, match="3 stages; got 2"):
        RaySettings(replicas=((1, 1), (2, 2))).of_stages(3)
