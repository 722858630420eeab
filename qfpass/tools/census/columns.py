"""What is asked of a family that works: embeddings, drafts, quantised weights."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from transformers import GenerationConfig

from ...ends.original import embeddings_of, output_of
from ...errors import ConfigError
from ...proof.text import original_logits, positions_of
from ...sessions.tokens import Tokens
from .compare import DifferenceError, as_logits, read, require_close
from .subject import RECENT, SLOTS, TOKENS, Subject, compile_completely

PROMPT, NEW_TOKENS = 20, 12
DRAFTED = RECENT - 1  # no more than a session of small stores can take back


def check_embeddings(subject: Subject) -> None:
    """Compare embeddings of the text, alone and mixed with ids on one session, with the original.

    Raises:
        DifferenceError: the compiled model computes something else.
        QFPassError: it takes no embeddings.
    """
    model, ids, compiled = subject.model, subject.ids, subject.complete
    embeddings, session = embeddings_of(model, ids), compiled.session()
    alone = as_logits(compiled(inputs_embeds=embeddings))
    require_close(alone, output_of(model, Tokens(ids, embeddings), positions_of(ids)), "given embeddings")
    parts = [
        as_logits(compiled(**{name: given[:, a:b]}, past_key_values=session))
        for name, given, a, b in (
            ("inputs_embeds", embeddings, 0, 13), ("input_ids", ids, 13, 14),
            ("inputs_embeds", embeddings, 14, 30), ("input_ids", ids, 30, TOKENS),
        )
    ]  # fmt: skip
    require_close(torch.cat(parts, 1), subject.logits, "given embeddings and ids in turn")


def check_drafts(subject: Subject) -> None:
    """Compare drafts that are looked up in the prompt with plain decoding, and taking back past full stores.

    Raises:
        DifferenceError: the compiled model computes something else.
        QFPassError: it takes no tokens back.
    """
    if subject.has_usual_generate:
        _compare_drafts(subject.complete, 2 + subject.ids[:1, :PROMPT] % 5)  # few ids, so that some is found
    compiled, ids = subject.bounded, subject.ids
    logits = []
    for drafted in (0, DRAFTED):
        session = compiled.session(take_back=DRAFTED)
        compiled(ids[:, : 2 * SLOTS], past_key_values=session)
        if drafted:
            compiled(ids[:, :drafted], past_key_values=session)
            session.crop(-drafted)
        logits.append(as_logits(compiled(ids[:, 2 * SLOTS :], past_key_values=session)))
    require_close(logits[1], logits[0], f"after taking back {DRAFTED} tokens with {SLOTS} slots")


def _compare_drafts(compiled: Any, prompt: torch.Tensor) -> None:
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    compiled.generation_config = GenerationConfig(**settings)
    plain = compiled.generate(prompt, generation_config=GenerationConfig(**settings))
    drafting = GenerationConfig(**settings, prompt_lookup_num_tokens=DRAFTED)
    drafted = compiled.generate(prompt, generation_config=drafting)
    if not torch.equal(drafted, plain):
        new, others = drafted[0, PROMPT:].tolist(), plain[0, PROMPT:].tolist()
        raise DifferenceError(f"generates {new} with drafts, {others} without")


def check_int8(subject: Subject) -> None:
    """Compare a copy with torchao's weights of eight bits with what it compiles to.

    Raises:
        DifferenceError: the compiled model computes something else.
        QFPassError: it is refused.
    """
    if find_spec("torchao") is None:
        raise ConfigError("torchao, which makes such weights, isn't installed: pip install torchao.")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantised = copy.deepcopy(subject.model)
    quantize_(quantised, Int8WeightOnlyConfig())
    logits = read(compile_completely(quantised), subject.ids, (0, 13, 14, TOKENS))
    require_close(logits, original_logits(quantised, subject.ids), "read")


COLUMNS: dict[str, Callable[[Subject], None]] = {
    "embeddings": check_embeddings,
    "drafts": check_drafts,
    "int8": check_int8,
}
