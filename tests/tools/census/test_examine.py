"""The census tells what works, what is refused and what is wrong."""

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from tiny import FAMILIES
from torch import nn

from qfpass.attention.find import Attention, find_attentions
from qfpass.store.slots import Protection
from qfpass.tools.census import examine, examine_family, families

# A window beside full attention; a softmax between products; positions counted inside.
CHEAP = ("gemma3_text", "gptj", "opt")


@pytest.mark.parametrize("family", CHEAP)
def test_families_work(family: str) -> None:
    entry = examine_family(family, {})
    assert (entry.outcome, entry.note) == ("works", "")
    assert entry.sites == 2
    assert "causal" in entry.spans


def test_state_outside_attention_is_refused_by_name() -> None:
    entry = examine_family("rwkv", {})
    assert entry.outcome == "refused"
    assert "rwkv.blocks.0" in entry.note and "outside attention" in entry.note


def test_every_entry_of_the_mapping_is_listed() -> None:
    assert len(families()) > 150 and set(CHEAP) <= set(families())


def test_what_cannot_be_built_is_told() -> None:
    def build() -> nn.Module:
        raise ValueError("no such size")

    entry = examine("none", build)
    assert (entry.outcome, entry.note) == ("not built", "ValueError: no such size")


def test_a_crash_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("node")

    monkeypatch.setattr(import_module("qfpass.proof.prove"), "find_attentions", broken)
    entry = examine("llama", FAMILIES["llama"])
    assert (entry.outcome, entry.note) == ("crashed", "KeyError: 'node'")


def test_a_wrong_scale_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def misread(*arguments: Any) -> list[Attention]:
        return [
            replace(a, form=replace(a.form, scale=a.form.scale * 1.1)) for a in find_attentions(*arguments)
        ]

    module = import_module("qfpass.proof.prove")
    monkeypatch.setattr(module, "find_attentions", misread)
    monkeypatch.setattr(module, "verify", lambda *_: None)
    entry = examine("llama", FAMILIES["llama"])
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
    entry = examine("llama", FAMILIES["llama"])
    assert entry.outcome == "wrong"
    assert "slots" in entry.note


def test_refusals_are_the_packages_own() -> None:
    entry = examine("training", lambda: FAMILIES["llama"]().train())
    assert entry.outcome == "refused"
    assert "training mode" in entry.note
