"""Examines one model of the census: compiles it and compares it with the original."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from ...attention.find import find_attentions
from ...capture.export import capture
from ...errors import QFPassError
from ...model.compiled_decoder import decoder_of
from ...proof.text import original_logits
from ...vision_language.parts import vision_language_parts
from .columns import COLUMNS, NEW_TOKENS, PROMPT
from .compare import TOLERANCE, DifferenceError, difference, read, require_close
from .entry import Entry, Verdict
from .evicted import logits_without_evicted
from .subject import CHUNK, SLOTS, TOKENS, Subject
from .tiny import CONTEXT


def examine(
    entry: Entry, build: Callable[[], nn.Module], columns: Sequence[str] = tuple(COLUMNS), whole: bool = True
) -> Iterator[Entry]:
    """Yield the entry of one family as it grows; any exception becomes an outcome.

    Args:
        entry: what is known of it: its names, and what else the record holds.
        columns: of `COLUMNS`, examined if the family works.
        whole: whether to find out first if it works; else `entry` tells.
    """
    try:
        subject = Subject(build())
    except Exception as error:  # a configuration class may raise anything
        yield replace(entry, outcome="not built", note=_one_line(error, with_type=True), answers={})
        return
    if whole:
        entry = _whole(replace(entry, model=type(subject.model).__name__), subject)
        yield entry
    for column in columns if entry.outcome == "works" else ():
        answer = _answer(partial(COLUMNS[column], subject))
        entry = replace(entry, answers={**entry.answers, column: answer})
        yield entry


def _whole(entry: Entry, subject: Subject) -> Entry:
    found = list[tuple[int, tuple[str, ...]]]()
    answer = _answer(lambda: found.append(check_model(subject)))
    if answer.outcome != "yes":
        return replace(entry, outcome=answer.outcome, note=answer.note, answers={}, sites=0, spans=())
    ((sites, spans),) = found
    return replace(entry, outcome="works", note="", sites=sites, spans=spans)


def _answer(check: Callable[[], object]) -> Verdict:
    try:
        with torch.compiler.set_stance("force_eager"):  # tracing each graph would take most of the time
            check()
    except QFPassError as error:
        return Verdict("refused", _one_line(error))
    except DifferenceError as error:
        return Verdict("wrong", _one_line(error))
    except Exception as error:
        return Verdict("crashed", _one_line(error, with_type=True))
    return Verdict("yes")


def check_model(subject: Subject) -> tuple[int, tuple[str, ...]]:
    """Compare a model with compiled versions of it: without eviction, generating, and with small stores.

    Returns the number of attentions and their spans.

    Raises:
        DifferenceError: a compiled model computes something else.
        QFPassError: it is refused.
    """
    for way, ends in _ways().items():
        # Dynamo traces the graphs of the first way: one for chunks, one for a token.
        with torch.compiler.set_stance("default" if way == "at once" else "force_eager"):
            require_close(read(subject.complete, subject.ids, ends), subject.logits, f"read {way}")
    if subject.has_usual_generate:
        _compare_generation(subject)
    _compare_evicting(subject)
    layers = decoder_of(subject.complete).layers
    return len(layers), tuple(dict.fromkeys(layer.span for layer in layers))


def _ways() -> dict[str, tuple[int, ...]]:
    return {
        "at once": (0, TOKENS - 1, TOKENS),
        "in chunks": (0, 13, 14, 30, TOKENS),
        "token by token": tuple(range(TOKENS + 1)),
    }


def _compare_evicting(subject: Subject) -> None:
    attentions = find_attentions(capture(_with_a_graph(subject)), CONTEXT)
    layers = decoder_of(subject.bounded).layers
    for way, ends in _ways().items():
        pieces = [0, *(min(s + CHUNK, b) for a, b in pairwise(ends) for s in range(a, b, CHUNK))]
        expected = logits_without_evicted(attentions, layers, subject.ids, pieces)
        is_same = difference(expected, subject.logits) < 10 * TOLERANCE
        if is_same and not all(layer.is_ring for layer in layers):
            raise DifferenceError(
                "evicting keys changes nothing, so comparing with small stores says nothing"
            )
        require_close(read(subject.bounded, subject.ids, ends), expected, f"read {way} with {SLOTS} slots")


def _with_a_graph(subject: Subject) -> nn.Module:
    """The model, or its text decoder alone if it has one that gives the same logits."""
    parts = vision_language_parts(subject.model)
    if parts is None or difference(original_logits(parts.decoder, subject.ids), subject.logits) > TOLERANCE:
        return subject.model
    return parts.decoder


def _compare_generation(subject: Subject) -> None:
    settings = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    subject.complete.generation_config = settings
    ids = prompt = subject.ids[:, :PROMPT]
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, original_logits(subject.model, ids)[:, -1:].argmax(-1)], dim=1)
    actual: Any = subject.complete.generate(prompt, generation_config=settings)
    if not torch.equal(actual, ids):
        new, others = actual[:, PROMPT:].tolist(), ids[:, PROMPT:].tolist()
        raise DifferenceError(f"generates {new}, the original {others}")


def _one_line(error: Exception, with_type: bool = False) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if with_type else text
