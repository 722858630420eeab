"""A tiny model with a tokenizer and a text of its own."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny import FAMILIES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

import qfpass

VOCABULARY, POSITIONS = 420, 4096
TEXT = """
the river kept its own time and every boat that came down from hills carried news about weather or grain
while people near market spoke of numbers hidden magic special following text question answer variables
assigned value words common list appear often than others memorize quiz afterwards mentioned provided
"""
WORDS = TEXT.split()


def sentences(count: int, seed: int = 0) -> str:
    """Random sentences of common words."""
    chosen = random.Random(seed)
    lines = (" ".join(chosen.choices(WORDS, k=chosen.randint(5, 12))) for _ in range(count))
    return " ".join(line.capitalize() + "." for line in lines)


@pytest.fixture(autouse=True)
def cheap() -> Iterator[None]:
    """Graphs run untraced (other tests trace them) and on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def essays() -> str:
    return sentences(600)


@pytest.fixture(scope="session")
def tokenizer(essays: str) -> PreTrainedTokenizerFast:
    """Byte-level pairs trained on the essays: any text goes through it and comes back."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<end>", "<start>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator([essays], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>", bos_token="<start>")


def tiny_model(kind: str = "llama", seed: int = 0) -> nn.Module:
    """A tiny Hugging Face model for the tokenizer, with room for long prompts."""
    model = FAMILIES[kind](vocab=VOCABULARY, seed=seed)
    config: Any = model.config
    config.max_position_embeddings = POSITIONS
    return model


@pytest.fixture(scope="session")
def model() -> nn.Module:
    return tiny_model()


Compile = Callable[..., Any]


@pytest.fixture(scope="session")
def compiled(model: nn.Module) -> Compile:
    """Compile the tiny model eagerly, by recency unless told otherwise; equal settings compile once."""
    made: dict[str, Any] = {}

    def compile_once(**settings: Any) -> Any:
        key = repr(sorted(settings.items()))
        if key not in made:
            made[key] = qfpass.compile(
                model, **{"backend": "eager", "verify": False, "score": "recency"} | settings
            )
        return made[key]

    return compile_once


def ids(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Random ids [rows, tokens]."""
    return torch.randint(2, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def random_ids() -> Callable[..., torch.Tensor]:
    return ids
