"""A tiny model that is served, and what an answer must be: the same ids read alone, token by token."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from bounded import compiled, llama, run_plainly

from qfpass.serving.sampling import Sampler, Sampling

GREEDY = Sampling()


@functools.cache
def served_model(**settings: Any) -> Any:
    """16 slots and a context of 48 tokens, chunks of 8; it writes no end of text."""
    model = llama()
    model.generation_config.eos_token_id = None
    return run_plainly(compiled(model, **settings))


def prompt(tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 53, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def alone(
    model: Any,
    ids: Sequence[int],
    tokens: int,
    sampling: Sampling = GREEDY,
    session: Any = None,
    cuts: Sequence[int] = (),
) -> list[int]:
    """The answer of a session by itself, which may have read some of `ids`, cut where a request has marks."""
    session = session or model.session()
    sampler, written = Sampler(sampling, list(ids)), list[int]()
    edges = [session.tokens_seen, *(cut for cut in cuts if session.tokens_seen < cut < len(ids)), len(ids)]
    for start, stop in itertools.pairwise(edges):
        unread = torch.tensor([ids[start:stop]])
        logits = model(unread, past_key_values=session, logits_to_keep=1).logits
    while True:
        written.append(sampler.choose(logits[0, -1]))
        if len(written) == tokens:
            return written
        logits = model(torch.tensor([written[-1:]]), past_key_values=session).logits
