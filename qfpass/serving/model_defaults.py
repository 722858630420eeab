"""What a model and its tokenizer state about answers themselves."""

from typing import Any

from .sampling import Sampling


def default_sampling(model: Any) -> Sampling:
    """How tokens are chosen by the model's `generation_config`; the likeliest where it has none."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return Sampling()
    given = {
        "temperature": config.temperature if config.temperature is not None else 1.0,
        "top_p": config.top_p, "top_k": config.top_k, "min_p": config.min_p,
    }  # fmt: skip
    sampled = {name: value for name, value in given.items() if value is not None}
    penalty = config.repetition_penalty or 1.0
    return Sampling(**(sampled if config.do_sample else {}), repetition_penalty=penalty)


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end an answer: the model's ends of text, and the tokenizer's."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in (*several, tokenizer.eos_token_id) if end is not None)
