"""Examines one model of the census: compiles it and compares it with the original."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin

from ...attention.find import find_attentions
from ...capture.export import capture
from ...errors import QFPassError
from ...model.compiled_decoder import decoder_of
from ...pipeline import compile as compile_model
from ...proof.verify import original_logits
from .evicted import logits_without_evicted
from .tiny import CONTEXT

TOKENS, CHUNK, BATCH = 40, 9, 2
SLOTS, RECENT, SINKS = 12, 4, 2
PROMPT, NEW_TOKENS = 20, 12
TOLERANCE = 1e-4  # of the largest logit: float32's rounding of sums taken in another order


@dataclass(frozen=True)
class Entry:
    """The result of the census for one family.

    `outcome` is "works", "refused", "wrong", "crashed" or "not built"; `note` says why.
    """

    family: str
    model: str
    outcome: str
    note: str = ""
    sites: int = 0
    spans: tuple[str, ...] = field(default=())


class DifferenceError(Exception):
    """The compiled model computes something else than the original."""


def examine(family: str, build: Callable[[], nn.Module]) -> Entry:
    """The entry of one family: builds, compiles and compares a model; any exception becomes an outcome."""
    try:
        model = build()
    except Exception as error:  # a configuration class may raise anything
        return Entry(family, "", "not built", _one_line(error, with_type=True))
    name = type(model).__name__
    try:
        sites, spans = check_model(model)
    except QFPassError as error:
        return Entry(family, name, "refused", _one_line(error))
    except DifferenceError as error:
        return Entry(family, name, "wrong", _one_line(error))
    except Exception as error:
        return Entry(family, name, "crashed", _one_line(error, with_type=True))
    return Entry(family, name, "works", "", sites, spans)


def check_model(model: nn.Module) -> tuple[int, tuple[str, ...]]:
    """Compare a model with compiled versions of it: without eviction, generating, and with small stores.

    Returns the number of attentions and their spans.

    Raises:
        DifferenceError: a compiled model computes something else.
        QFPassError: it is refused.
    """
    complete = compile_model(model, ratio=1, context_length=CONTEXT, chunk=CHUNK, backend="eager")
    ids = _text(model)
    expected = original_logits(model, ids)
    _compare(complete, ids, expected, "")
    _compare_generation(model, complete, ids[:, :PROMPT])
    layers = decoder_of(complete).layers
    bounded = compile_model(
        model, budget=SLOTS, recent=RECENT, sinks=SINKS, chunk=CHUNK, score="random",
        context_length=CONTEXT, backend="eager", verify=False,
    )  # fmt: skip
    _compare_evicting(model, bounded, ids, expected)
    return len(layers), tuple(dict.fromkeys(layer.span for layer in layers))


def _text(model: nn.Module) -> torch.Tensor:
    vocabulary = original_logits(model, torch.zeros(1, 2, dtype=torch.long)).shape[-1]
    return torch.randint(vocabulary, (BATCH, TOKENS), generator=torch.Generator().manual_seed(1))


def _ways() -> dict[str, tuple[int, ...]]:
    chunks = (0, 13, 14, 30, TOKENS)
    return {"at once": (0, TOKENS), "in chunks": chunks, "token by token": tuple(range(TOKENS + 1))}


def _compare(compiled: Any, ids: torch.Tensor, expected: torch.Tensor, with_what: str) -> None:
    for way, ends in _ways().items():
        _require_close(_read(compiled, ids, ends), expected, f"read {way}{with_what}")


def _compare_evicting(model: nn.Module, bounded: Any, ids: torch.Tensor, complete: torch.Tensor) -> None:
    attentions, layers = find_attentions(capture(model), CONTEXT), decoder_of(bounded).layers
    for way, ends in _ways().items():
        pieces = [0, *(min(s + CHUNK, b) for a, b in pairwise(ends) for s in range(a, b, CHUNK))]
        expected = logits_without_evicted(attentions, layers, ids, pieces)
        if not all(layer.is_ring for layer in layers) and _difference(expected, complete) < 10 * TOLERANCE:
            raise DifferenceError(
                "evicting keys changes nothing, so comparing with small stores says nothing"
            )
        _require_close(_read(bounded, ids, ends), expected, f"read {way} with {SLOTS} slots")


def _compare_generation(model: nn.Module, compiled: Any, prompt: torch.Tensor) -> None:
    if getattr(type(model), "generate", None) is not GenerationMixin.generate:
        return  # a class's own way of generating has arguments of its own
    settings = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    compiled.generation_config = settings
    ids = prompt
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, original_logits(model, ids)[:, -1:].argmax(-1)], dim=1)
    actual = compiled.generate(prompt, generation_config=settings)
    if not torch.equal(actual, ids):
        raise DifferenceError(
            f"generates {actual[:, PROMPT:].tolist()}, the original {ids[:, PROMPT:].tolist()}"
        )


def _read(compiled: Any, ids: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    session = compiled.session()
    outputs: Iterable[Any] = [compiled(ids[:, a:b], past_key_values=session) for a, b in pairwise(ends)]
    return torch.cat([getattr(output, "logits", output) for output in outputs], dim=1)


def _require_close(actual: torch.Tensor, expected: torch.Tensor, how: str) -> None:
    difference = _difference(actual, expected)
    if not difference <= TOLERANCE:
        raise DifferenceError(f"{how}, its logits differ by {difference:.1e} of the largest")


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest magnitude; NaN if either holds one."""
    return float((actual - expected).abs().max() / expected.abs().max())


def _one_line(error: Exception, with_type: bool = False) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if with_type else text
