"""The whole pass on SmolLM2-135M-Instruct's real weights."""

import pytest
import torch
from assets import essays_text, weights_folder
from bounded import graphs_of_one_batch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(not weights_folder().exists(), reason="run `make weights` first"),
]
PROMPTS = (50, 700, 3000)
NEW_TOKENS = 200


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    return tokenizer(essays_text()[:60000], return_tensors="pt", verbose=False).input_ids


def test_ratio_1_writes_what_transformers_writes(model: torch.nn.Module, text: torch.Tensor) -> None:
    compiled = qfpass.compile(model, ratio=1)
    for length in PROMPTS:
        ids = text[:, :length]
        settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
        assert compiled.generate(ids, **settings).tolist() == model.generate(ids, **settings).tolist()
    assert qfpass.report(compiled).graphs_compiled <= graphs_of_one_batch(compiled)


def test_compact_weights_write_what_the_weights_write(model: torch.nn.Module, text: torch.Tensor) -> None:
    """A dequantised GGUF: every linear of 30 layers and the head have codes, in a third of their bytes."""
    compact = qfpass.compile(model, budget=64, recent=32, score="recency", compact_weights=True, verify=False)
    plain = qfpass.compile(model, budget=64, recent=32, score="recency", backend="eager", verify=False)
    outlined = compact.qfpass_decoder.graphs.outlined
    assert len(outlined.copied) == 30 * 7 + 1
    held = sum(weight.nbytes for weight in outlined.copied)
    assert sum(copy.nbytes for copy in outlined.copies) < held / 3
    settings = {"max_new_tokens": 80, "min_new_tokens": 80, "do_sample": False}
    written = [m.generate(text[:, :100], **settings).tolist() for m in (compact, plain)]
    assert written[0] == written[1]


def test_ratio_8_after_8000_tokens(model: torch.nn.Module, text: torch.Tensor) -> None:
    compiled = qfpass.compile(model, ratio=8, score="recency")
    report = qfpass.report(compiled)
    assert len(report.sites) == 30
    session = compiled.session()
    for ids in text[:, :8000].split((50, 1, 1, 700, 3, 1, 7244), dim=1):
        compiled(input_ids=ids, past_key_values=session, logits_to_keep=1)
    assert session.tokens_seen == 8000
    assert session.kv_nbytes * 8 == report.full_nbytes
    warm = qfpass.report(compiled).graphs_compiled
    assert warm == graphs_of_one_batch(compiled)
    # No length of prompt, turn or wanted logits compiles anything more.
    session.reset()
    for length, keep in ((2, 0), (1, 0), (511, 2), (513, 1), (1, 1), (1025, 0)):
        compiled(input_ids=text[:, :length], past_key_values=session, logits_to_keep=keep)
    assert qfpass.report(compiled).graphs_compiled == warm


def test_default_filters_are_made_once_and_found_again(
    model: torch.nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("QFPASS_CACHE", str(tmp_path))
    monkeypatch.setattr("qfpass.choose_filters.TOKENS", 16)
    qfpass.compile(model, ratio=8, backend="eager", verify=False)
    assert "calibrated" in capsys.readouterr().err
    qfpass.compile(model, ratio=8, backend="eager", verify=False)
    assert "calibrated" not in capsys.readouterr().err
