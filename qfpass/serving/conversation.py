"""Messages and prompts as token ids, and the lengths at which a later request may go on otherwise."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class PromptIds:
    """A prompt's token ids.

    Attributes:
        shared: how many of them are the system prompt.
        marks: the lengths at which turns end; None if the prompt has no turns.
    """

    ids: list[int]
    shared: int = 0
    marks: tuple[int, ...] | None = None


def read_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> PromptIds:
    """The ids of a chat by the tokenizer's own template, up to where the answer begins.

    Args:
        messages: with a role and a content of text each.
        settings: what the template takes further, such as enable_thinking.

    Raises:
        InputError: the tokenizer has no template, or the template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("this model's tokenizer has no chat template: use /v1/completions.")
    settings = settings or {}
    own = inspect.signature(tokenizer.apply_chat_template).parameters
    if taken := sorted(own.keys() & settings.keys()):
        raise InputError(f"chat_template_kwargs can't set {', '.join(taken)}.")

    def render(some: Sequence[Mapping[str, Any]], generates: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                some, tools=tools, add_generation_prompt=generates, tokenize=False, **settings
            )
        )

    try:
        text = render(messages, True)
    except Exception as error:  # a template is a program of others, and may raise anything
        raise InputError(f"the model's chat template refuses these messages: {error}") from error
    ids = _tokens(tokenizer, text)
    shared = _length(tokenizer, ids, text, render, messages[:1]) if messages[0]["role"] == "system" else 0
    # Before what opens the answer, which a template may write otherwise once the answer is an earlier turn.
    turns_end = _length(tokenizer, ids, text, render, messages)
    return PromptIds(ids, shared, tuple(n for n in sorted({shared, turns_end}) if n) or None)


def read_prompt(tokenizer: Any, prompt: str | list[int]) -> PromptIds:
    """The ids of a prompt that is a string, with the tokenizer's special tokens, or ids already."""
    return PromptIds(prompt if isinstance(prompt, list) else list(tokenizer(prompt).input_ids))


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _length(
    tokenizer: Any, ids: list[int], text: str, render: Any, messages: Sequence[Mapping[str, Any]]
) -> int:
    """How many of `ids`, the tokens of `text`, are of the first messages; 0 if they aren't a beginning."""
    try:
        beginning = render(messages, False)
    except Exception:  # some templates want a user's message
        return 0
    found = _tokens(tokenizer, beginning) if text.startswith(beginning) else []
    return len(found) if ids[: len(found)] == found else 0
