"""Other people's code on a compiled model: pipelines, streamers, lm_eval, accelerate's device maps."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import SETTINGS
from tiny import FAMILIES
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
    pipeline,
)

import qfpass
from qfpass.errors import CaptureError, InputError, SessionError

WORDS = [f"w{i}" for i in range(61)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 to w60, w0 for padding and w1 for the end."""
    tokens = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w2"))
    tokens.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="w0", eos_token="w1", unk_token="w2", padding_side="left"
    )


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return FAMILIES["llama"]()


@pytest.fixture(scope="module")
def model(original: nn.Module) -> nn.Module:
    """Keeps every key, so that it says what the original says."""
    return qfpass.compile(original, ratio=1, backend="eager", chunk=16)


PROMPTS = [" ".join(WORDS[5 : 5 + n]) for n in (3, 9, 5)]


def test_a_pipeline_writes_what_it_writes_on_the_original(
    original: nn.Module, model: nn.Module, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"max_new_tokens": 12, "do_sample": False, "batch_size": 3}
    made = [
        pipeline("text-generation", model=each, tokenizer=tokenizer)(PROMPTS, **settings)
        for each in (original, model)
    ]
    assert made[1] == made[0]
    assert "not supported" not in caplog.text


def test_text_is_streamed_from_a_thread(model: nn.Module, tokenizer: Any) -> None:
    inputs = tokenizer(PROMPTS[0], return_tensors="pt", return_token_type_ids=False)
    settings = {"max_new_tokens": 12, "do_sample": False}
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **settings, "streamer": streamer})
    thread.start()
    written = "".join(streamer)
    thread.join()
    wanted = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    assert written.split() == tokenizer.decode(wanted).split()


def test_lm_eval_scores_and_writes_what_it_does_on_the_original(
    original: nn.Module, model: nn.Module, tokenizer: Any
) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm_eval is not installed")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    results = []
    for each in (original, model):
        evaluated = huggingface.HFLM(pretrained=each, tokenizer=tokenizer, batch_size=2, max_length=64)
        pairs = [("w5 w6 w7", " w8 w9"), ("w5", " w6"), ("w9 w8 w7 w6", " w5 w4 w3")]
        asked = [instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        until = {"until": ["w1"], "max_gen_toks": 8, "do_sample": False}
        write = [instance("generate_until", {}, (p, until), i) for i, p in enumerate(PROMPTS)]
        rolling = [instance("loglikelihood_rolling", {}, (" ".join(WORDS[3:]),), 0)]
        likelihoods = [value for value, _ in evaluated.loglikelihood(asked)]
        likelihoods += evaluated.loglikelihood_rolling(rolling)
        results.append((likelihoods, evaluated.generate_until(write)))
    scores = [torch.tensor(likelihoods) for likelihoods, _ in results]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)
    assert results[1][1] == results[0][1]


def test_a_device_map_of_one_device_is_as_good_as_none(original: nn.Module, tmp_path: Path) -> None:
    original.save_pretrained(tmp_path)
    mapped = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    ids = torch.arange(3, 30)[None]
    compiled = qfpass.compile(mapped, budget=24, verify=False, **SETTINGS)
    wanted = qfpass.compile(original, budget=24, verify=False, **SETTINGS)
    assert torch.equal(compiled(ids).logits, wanted(ids).logits)


def test_an_offloaded_model_is_refused(original: nn.Module, tmp_path: Path) -> None:
    original.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    layers = {"model.layers.0": "cpu", "model.layers.1": "disk"}
    mapped = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map={**places, **layers}, offload_folder=tmp_path / "offload"
    ).eval()
    with pytest.raises(CaptureError, match=r"offloaded: the weights of model\.layers\.1\."):
        qfpass.compile(mapped, budget=24)


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        (
            {"penalty_alpha": 0.6, "top_k": 4},
            SessionError,
            "contrastive_search.*nothing from inside the model",
        ),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, SessionError, "group_beam_search"),
        ({"dola_layers": "low"}, SessionError, "dola_generation"),
        ({"use_cache": False}, InputError, "use_cache=False"),
        ({"cache_implementation": "static"}, InputError, "cache_implementation='static'"),
    ],
)
def test_what_generate_can_not_do_is_refused_by_name(
    model: nn.Module, settings: dict[str, Any], error: type[Exception], reason: str
) -> None:
    session, ids = model.session(), torch.arange(3, 12)[None]
    with pytest.raises(error, match=reason):
        model.generate(ids, past_key_values=session, max_new_tokens=4, **settings)
    with pytest.raises(InputError, match="continuous batching"):
        model.generate_batch([[1, 2, 3]])
    assert session.tokens_seen == 0
