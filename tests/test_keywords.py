"""Misspelled keywords: a TypeError that names the nearest keyword or the method's option."""

import pytest
from helpers import attached, loader

import leenet_fx
from leenet_fx.keywords import check_keywords


@check_keywords
def example(first, *, second=0):
    """Return the arguments."""
    return first, second


def test_a_decorated_function_is_called_as_before():
    assert example(1, second=2) == (1, 2)
    assert example(first=1) == (1, 0)
    assert example.__doc__ == "Return the arguments."
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'first'"):
        example(second=2)


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("secnd", r"example\(\) got an unexpected keyword argument 'secnd'. Did you mean 'second'"),
        ("xyz", r"example\(\) got an unexpected keyword argument 'xyz'\.$"),
    ],
)
def test_the_nearest_keyword_is_named(keyword, message):
    with pytest.raises(TypeError, match=message):
        example(1, **{keyword: 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"epoch": 3},
            r"fit\(\) got an unexpected keyword argument 'epoch'. Did you mean 'epochs'",
        ),
        ({"gate": 3}, "unexpected keyword argument 'gate'"),
        ({"recipe": "joint"}, r"Options belong to the method: .*get_method\('[\w-]+', recipe=…\)"),
        (
            {"method": "branchynet", "recipe": "joint"},
            r"method=leenet_fx.get_method\('branchynet', recipe=…\)",
        ),
        (
            {"method": "shallow-deep", "treshold": 0.5},
            r"method=leenet_fx.get_method\('shallow-deep', threshold=…\)",
        ),
    ],
)
def test_fit_tells_keywords_from_options_of_methods(options, message):
    with pytest.raises(TypeError, match=message):
        leenet_fx.fit(attached(), loader(), **options)


def test_attach_sweep_and_compare_name_the_nearest_keyword():
    with pytest.raises(TypeError, match=r"attach\(\) .* Did you mean 'num_exits'"):
        leenet_fx.attach(None, num_exit=3)
    with pytest.raises(TypeError, match=r"get_method\('pabee', recipe=…\)"):
        leenet_fx.attach(None, method="pabee", recipe="joint")
    with pytest.raises(TypeError, match=r"sweep\(\) .* Did you mean 'alphas'"):
        leenet_fx.sweep(None, [], [], alpha=[0.5])
    with pytest.raises(TypeError, match=r"compare\(\) .* Did you mean 'seeds'"):
        leenet_fx.compare(None, [], [], [], [], seed=1)
