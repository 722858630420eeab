"""Every bad value is refused by name; good ones give the sizes that they should."""

from typing import Any

import pytest

from qfpass.config import Config
from qfpass.errors import ConfigError
from qfpass.pipeline import compile
from qfpass.sizes import Sizes


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ratio": 8, "budget": 64}, "ratio and budget"),
        ({"ratio": 0.5}, "ratio"),
        ({"ratio": 0}, "ratio"),
        ({"ratio": -2}, "ratio"),
        ({"ratio": float("nan")}, "ratio"),
        ({"ratio": float("inf")}, "ratio"),
        ({"ratio": "8"}, "ratio"),
        ({"ratio": True}, "ratio"),
        ({"budget": 1}, "budget"),
        ({"budget": 8.0}, "budget"),
        ({"budget": True}, "budget"),
        ({"context_length": 1}, "context_length"),
        ({"context_length": "4096"}, "context_length"),
        ({"recent": 0}, "recent"),
        ({"recent": 2.5}, "recent"),
        ({"sinks": -1}, "sinks"),
        ({"sinks": None}, "sinks"),
        ({"score": "attention"}, "score"),
        ({"chunk": 1}, "chunk"),
        ({"chunk": 16.0}, "chunk"),
        ({"filters": 3}, "filters"),
        ({"filters": [1, 2]}, "filters"),
        ({"skip_layers": 3}, "skip_layers"),
        ({"skip_layers": (0, -1)}, "skip_layers"),
        ({"skip_layers": (0.5,)}, "skip_layers"),
        ({"backend": None}, "backend"),
        ({"backend": 3}, "backend"),
        ({"compile_options": {"fullgraph": False}}, "fullgraph"),
        ({"compile_options": {"dynamic": True}}, "dynamic"),
    ],
    ids=str,
)
def test_a_bad_value_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Config(**settings)


@pytest.mark.parametrize(
    ("settings", "context_length", "named"),
    [
        ({}, None, "context_length"),
        ({"skip_layers": (1, 4)}, 100, r"skip_layers names \[4\]"),
        ({"budget": 8, "sinks": 4, "recent": 4}, 100, "sinks .4. . recent .4."),
        ({"ratio": 50}, 100, "budget of 2 slots"),
        ({"budget": 16, "chunk": 16}, 100, "chunk"),
    ],
    ids=str,
)
def test_what_does_not_fit_a_model_is_refused(
    settings: dict[str, Any], context_length: int | None, named: str
) -> None:
    config = Config(**settings)
    with pytest.raises(ConfigError, match=named):
        config.resolve(context_length, sites=4)


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, Sizes(1000, slots=1000, recent=500, sinks=4, chunk=512)),
        ({"ratio": 8}, Sizes(1000, slots=125, recent=62, sinks=4, chunk=124)),
        ({"ratio": 3}, Sizes(1000, slots=334, recent=167, sinks=4, chunk=333)),
        ({"budget": 64, "recent": 9, "sinks": 0}, Sizes(1000, 64, recent=9, sinks=0, chunk=63)),
        ({"budget": 5000}, Sizes(1000, slots=1000, recent=500, sinks=4, chunk=512)),
        ({"context_length": 50, "chunk": 7}, Sizes(50, slots=50, recent=25, sinks=4, chunk=7)),
        ({"budget": 3, "sinks": 0, "recent": 1}, Sizes(1000, slots=3, recent=1, sinks=0, chunk=1)),
        ({"budget": 4, "sinks": 0, "recent": 1}, Sizes(1000, slots=4, recent=1, sinks=0, chunk=3)),
        ({"budget": 7}, Sizes(1000, slots=7, recent=2, sinks=4, chunk=6)),
        ({"budget": 64, "score": "recency"}, Sizes(1000, slots=64, recent=16, sinks=4, chunk=63)),
        ({"budget": 9, "recent": 4}, Sizes(1000, slots=9, recent=4, sinks=4, chunk=8)),
    ],
    ids=str,
)
def test_sizes(settings: dict[str, Any], sizes: Sizes) -> None:
    assert Config(**settings).resolve(1000, sites=4) == sizes


@pytest.mark.parametrize(("settings", "chunk"), [({}, 2048), ({"budget": 1024}, 1023), ({"chunk": 96}, 96)])
def test_a_default_chunk_is_given_way_to(settings: dict[str, Any], chunk: int) -> None:
    assert Config(**settings).resolve(10**6, sites=4, default_chunk=2048).chunk == chunk


def test_layer_numbers_are_sorted_and_unique() -> None:
    assert Config(skip_layers=(3, 1, 3)).skip_layers == (1, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratios": 8}, "takes no ratios=: did you mean ratio?"),
        ({"zebra": 1}, "takes no zebra=: it is no argument"),
    ],
)
def test_a_misspelt_argument_is_refused_before_anything_else(given: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile(None, **given)  # type: ignore[arg-type]
