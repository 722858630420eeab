"""The whole pass on real weights: SmolLM2-135M-Instruct, and Qwen2.5-Coder-0.5B by `make test-qwen`."""

from pathlib import Path

import pytest
import torch
from assets import essays_text, qwen_folder, weights_folder
from bounded import graphs_of_one_batch
from often import often
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(not weights_folder().exists(), reason="run `make weights` first"),
]
PROMPTS = {50: 200, 700: 40, 3000: 20}  # tokens read, and then written
LONG = dict.fromkeys(PROMPTS, 200)


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def read_essays(folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer(essays_text()[:60000], return_tensors="pt", verbose=False).input_ids


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return load(weights_folder())


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    return read_essays(weights_folder())


@pytest.fixture(scope="module", params=["smollm2", pytest.param("qwen", marks=pytest.mark.qwen)])
def each(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, torch.Tensor]:
    """A model, and the essays as its ids."""
    folder = weights_folder() if request.param == "smollm2" else qwen_folder()
    if not folder.exists():
        pytest.skip("run `make test-qwen`, which fetches the weights")
    return load(folder), read_essays(folder)


@pytest.mark.parametrize("prompts", often([PROMPTS], [PROMPTS, LONG]), ids=["some tokens", "200 tokens"])
def test_ratio_1_writes_what_transformers_writes(
    each: tuple[torch.nn.Module, torch.Tensor], prompts: dict[int, int]
) -> None:
    model, text = each
    compiled = qfpass.compile(model, ratio=1)
    for length, tokens in prompts.items():
        ids = text[:, :length]
        settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        assert compiled.generate(ids, **settings).tolist() == model.generate(ids, **settings).tolist()
    assert qfpass.report(compiled).graphs_compiled <= graphs_of_one_batch(compiled)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_after_eviction_logits_are_those_of_a_mask(
    each: tuple[torch.nn.Module, torch.Tensor], backend: str
) -> None:
    """By recency every layer keeps the same keys, so the original with a mask is an independent reference."""
    model, text = each
    slots, sinks, steps = 96, 4, 60
    ids = text[:, : slots + steps]
    query, key = torch.arange(ids.shape[1])[:, None], torch.arange(ids.shape[1])
    shown = (key <= query) & ((key < sinks) | (key > query - (slots - sinks)))
    with torch.no_grad():
        expected = model(ids, attention_mask=shown[None, None], use_cache=False).logits[:, slots:]
    compiled = qfpass.compile(model, budget=slots, sinks=sinks, score="recency", backend=backend)
    session = compiled.session()
    compiled(ids[:, : slots - 1], past_key_values=session)
    actual = [
        compiled(ids[:, i : i + 1], past_key_values=session).logits for i in range(slots - 1, ids.shape[1])
    ]
    torch.testing.assert_close(torch.cat(actual[1:], 1), expected, atol=2e-3, rtol=1e-4)


def test_prompt_lookup_writes_what_greedy_decoding_writes(
    each: tuple[torch.nn.Module, torch.Tensor],
) -> None:
    """On text that repeats, so that drafts are confirmed and rejected."""
    model, text = each
    compiled = qfpass.compile(model, ratio=1, backend="eager", verify=False)
    ids = torch.cat([text[:, :60], text[:, :60], text[:, :30]], 1)
    settings = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    wanted, session = compiled.generate(ids, **settings), compiled.session()
    out = compiled.generate(ids, past_key_values=session, prompt_lookup_num_tokens=8, **settings)
    assert torch.equal(out, wanted)
    assert session.tokens_seen == out.shape[1] - 1


@pytest.mark.qwen
@pytest.mark.parametrize("ratio", [1, 8])
def test_a_small_model_drafts_for_a_larger_one(model: torch.nn.Module, ratio: int) -> None:
    """With two tokenizers. The stores hold the whole text, so that tokens are those of greedy decoding."""
    target = qfpass.compile(load(qwen_folder()), ratio=ratio, score="recency", backend="eager", verify=False)
    draft = qfpass.compile(model, ratio=ratio, score="recency", backend="eager", verify=False)
    tokenizer = AutoTokenizer.from_pretrained(qwen_folder())
    ids = tokenizer("for i in range(10):\n    print(i)\n" * 3 + "for i", return_tensors="pt").input_ids
    settings = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    wanted, calls = target.generate(ids, **settings), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = target.register_forward_pre_hook(count)
    drafts = {"tokenizer": tokenizer, "assistant_tokenizer": AutoTokenizer.from_pretrained(weights_folder())}
    out = target.generate(ids, assistant_model=draft, **drafts, **settings)
    handle.remove()
    assert torch.equal(out, wanted)
    assert calls < 40  # some drafts were confirmed


def test_ratio_8_after_8000_tokens(model: torch.nn.Module, text: torch.Tensor) -> None:
    compiled = qfpass.compile(model, ratio=8, score="recency")
    report = qfpass.report(compiled)
    assert len(report.sites) == 30
    session = compiled.session()
    for ids in text[:, :8000].split((50, 1, 1, 700, 3, 1, 7244), dim=1):
        compiled(input_ids=ids, past_key_values=session, logits_to_keep=1)
    assert session.tokens_seen == 8000
    assert {site.stored for site in report.sites} == {"int8-int4"}
    # An eighth of all keys and values with a score and a position each, to the next slot.
    full = report.full_nbytes + 8 * report.context_length * sum(site.kv_heads for site in report.sites)
    assert 0 <= session.nbytes * 8 - full < 8 * session.nbytes / session.slots
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
    monkeypatch.setattr("qfpass.filters.self_written.TOKENS", 8)
    qfpass.compile(model, ratio=8, backend="eager", verify=False)
    assert "calibrated" in capsys.readouterr().err
    qfpass.compile(model, ratio=8, backend="eager", verify=False)
    assert "calibrated" not in capsys.readouterr().err
