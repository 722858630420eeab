"""The census tells what works, what is refused and what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from tiny import FAMILIES
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from qfpass.attention.find import Attention, find_attentions
from qfpass.sessions.session import Session
from qfpass.store.slots import Protection
from qfpass.tools.census import COLUMNS, Entry, examine, families, family_model

# A window beside full attention; a softmax between products; positions counted inside.
CHEAP = ("gemma3_text", "gptj", "opt")
LLAMA = Entry("llama", "LlamaForCausalLM", "works")


def examined(build: Callable[[], nn.Module], *columns: str) -> Entry:
    """The last entry; with columns of a family that is known to work."""
    *_, entry = examine(LLAMA, build, columns, whole=not columns)
    return entry


@pytest.mark.parametrize("family", CHEAP)
def test_families_work(family: str) -> None:
    entry = examined(lambda: family_model("causal", family, {}))
    assert (entry.outcome, entry.note) == ("works", "")
    assert entry.sites == 2
    assert "causal" in entry.spans


def test_text_decoders_of_models_of_images_work() -> None:
    entry = examined(lambda: family_model("image-text", "llava", {}))
    assert (entry.outcome, entry.note) == ("works", "")
    assert (entry.model, entry.sites) == ("LlavaForConditionalGeneration", 2)


def test_state_outside_attention_is_refused_by_name() -> None:
    entry = examined(lambda: family_model("causal", "rwkv", {}))
    assert entry.outcome == "refused"
    assert "rwkv.blocks.0" in entry.note and "other than plain attention" in entry.note


def test_every_entry_of_the_mapping_is_listed_once() -> None:
    listed = families()
    causal = {family for kind, family in listed if kind == "causal"}
    images = {family for kind, family in listed if kind == "image-text"}
    assert len(listed) == len(set(listed)) and len(causal) > 150 and set(CHEAP) <= causal
    assert {"llava", "qwen2_vl"} <= images and "gemma3" not in images  # the same model as among the causal


def test_what_cannot_be_built_is_told() -> None:
    def build() -> nn.Module:
        raise ValueError("no such size")

    entry = examined(build)
    assert (entry.outcome, entry.note) == ("not built", "ValueError: no such size")


def test_a_crash_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("node")

    monkeypatch.setattr(import_module("qfpass.proof.prove"), "find_attentions", broken)
    entry = examined(FAMILIES["llama"])
    assert (entry.outcome, entry.note) == ("crashed", "KeyError: 'node'")


def test_a_wrong_scale_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def misread(*arguments: Any) -> list[Attention]:
        return [
            replace(a, form=replace(a.form, scale=a.form.scale * 1.1)) for a in find_attentions(*arguments)
        ]

    module = import_module("qfpass.proof.prove")
    monkeypatch.setattr(module, "find_attentions", misread)
    monkeypatch.setattr(module, "verify", lambda *_: None)
    entry = examined(FAMILIES["llama"])
    assert entry.outcome == "wrong"
    assert "its logits differ" in entry.note


def test_wrong_eviction_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One recent token fewer is kept than is said."""
    slots = import_module("qfpass.store.slots")
    right = slots._protected

    def one_fewer(positions: torch.Tensor, newest: torch.Tensor, protection: Protection) -> torch.Tensor:
        fewer = torch.as_tensor(protection.recent - 1).clamp(min=1)
        return right(positions, newest, protection._replace(recent=fewer))

    monkeypatch.setattr(slots, "_protected", one_fewer)
    entry = examined(FAMILIES["llama"])
    assert entry.outcome == "wrong"
    assert "slots" in entry.note


def test_refusals_are_the_packages_own() -> None:
    entry = examined(lambda: FAMILIES["llama"]().train())
    assert entry.outcome == "refused"
    assert "training mode" in entry.note


def test_columns_say_yes() -> None:
    pytest.importorskip("torchao", reason="needs torchao: pip install torchao")
    entry = examined(FAMILIES["llama"], *COLUMNS)
    assert {name: answer.outcome for name, answer in entry.answers.items()} == dict.fromkeys(COLUMNS, "yes")
    assert (entry.outcome, entry.sites) == ("works", 0)  # as it was known


def test_wrong_columns_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = import_module("qfpass.tools.census.columns")
    right = columns.embeddings_of
    monkeypatch.setattr(columns, "embeddings_of", lambda *given: right(*given) * 2)
    monkeypatch.setattr(columns, "_compare_drafts", lambda *_: None)
    monkeypatch.setattr(Session, "crop", lambda self, columns: None)
    answers = examined(FAMILIES["llama"], "embeddings", "drafts").answers
    assert {answer.outcome for answer in answers.values()} == {"wrong"}
    assert "ids in turn" in answers["embeddings"].note
    assert "after taking back 3 tokens" in answers["drafts"].note


class OnIds(LlamaForCausalLM):
    """Takes ids alone."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> Any:
        return super().forward(input_ids=input_ids, position_ids=position_ids, use_cache=False)


class WithTables(LlamaForCausalLM):
    """Embeds ids by several tables, as MusicGen's decoder does."""

    def get_input_embeddings(self) -> Any:
        return nn.ModuleList([self.model.embed_tokens])


def test_what_a_column_refuses_is_told() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=61
    )
    for kind, why in ((OnIds, "itself takes no inputs_embeds"), (WithTables, "embeds ids by several tables")):
        answer = examined(lambda kind=kind: kind(config).eval(), "embeddings").answers["embeddings"]
        assert (answer.outcome, answer.note) == ("refused", f"{kind.__name__} {why}: give input_ids.")
