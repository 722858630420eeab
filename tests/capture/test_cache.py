"""A graph that was captured before is read from its file, and is what capturing gives."""

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import Decoder, decoder, masked, places, text
from tiny import FAMILIES
from torch import nn
from torch._inductor import config as inductor_config

import qfpass
from qfpass.capture.cache import cache_file, load_captured, save_captured
from qfpass.capture.computation_digest import ComputationDigest, digest_computation
from qfpass.capture.export import capture
from qfpass.errors import NoAttentionError
from qfpass.graph.captured import Captured

DIGITS = "0" * 64


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path / "qfpass"


def file_for(model: nn.Module, batch: int | None = None) -> Path | None:
    known = digest_computation(model, batch, 64)
    return cache_file(known.digest, batch) if known else None


def kept_of(model: nn.Module, batch: int | None = None) -> Captured | None:
    """What is recalled of a model, None if nothing is."""
    file = file_for(model, batch)
    return load_captured(file, model, batch) if file else None


def kept_under(digest: str, model: nn.Module) -> Captured:
    file = cache_file(digest, None)
    kept = load_captured(file, model) if file else None
    assert kept is not None
    return kept


def capture_and_keep(model: nn.Module, batch: int | None = None) -> Captured:
    file = file_for(model, batch)
    assert file is not None
    captured = capture(model, batch)
    save_captured(file, captured, model)
    return captured


def forbid_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Captured:
        raise AssertionError("captured once more")

    monkeypatch.setattr(import_module("qfpass.proof.prove"), "capture", refuse)


def takes_for_one(monkeypatch: pytest.MonkeyPatch, alike: dict[str, str]) -> None:
    """All models, and layers for alike."""
    module = import_module("qfpass.proof.prove")
    monkeypatch.setattr(module, "digest_computation", lambda *_, **__: ComputationDigest(DIGITS, ()))
    monkeypatch.setattr(module, "repeated_layers", lambda *_: alike)


def assert_is_the_model(captured: Captured, model: nn.Module) -> None:
    for batch, length in ((1, 1), (2, 11)):
        ids = text(length, batch)
        with torch.no_grad():
            expected = model(ids, position_ids=places(ids))
        expected = getattr(expected, "logits", expected)
        torch.testing.assert_close(captured.module(ids, places(ids)), expected, atol=1e-5, rtol=1e-5)


class WithConstant(Decoder):
    """Adds a tensor that its forward makes."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids, position_ids) + torch.tensor([0.25, 0.5])[:1]


@pytest.mark.parametrize(
    "build", [*FAMILIES.values(), decoder, WithConstant], ids=[*FAMILIES, "plain", "constant"]
)
def test_another_model_recalls_the_graph_of_the_first(build: Any) -> None:
    first = capture_and_keep(build().eval())
    model = build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    again = kept_of(model)
    assert again is not None
    assert (again.device, again.dtype, again.batch) == (first.device, first.dtype, None)
    assert_is_the_model(again, model)
    theirs = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in again.module.parameters()} == theirs


def test_rows_and_any_number_of_rows_are_two() -> None:
    for batch in (None, 2):
        assert kept_of(decoder(), batch) is None
        capture_and_keep(decoder(), batch)
    for batch in (None, 2):
        kept = kept_of(decoder(), batch)
        assert kept is not None
        assert kept.batch == batch


def test_compile_goes_on_from_a_kept_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    first, ids = qfpass.compile(decoder(), context_length=64, ratio=1), text(20)
    forbid_capture(monkeypatch)
    model = decoder()
    second = qfpass.compile(model, context_length=64, ratio=1)
    assert qfpass.report(second).sites == qfpass.report(first).sites
    torch.testing.assert_close(second(ids), model(ids, places(ids)), atol=1e-4, rtol=1e-4)


def test_a_kept_graph_that_does_not_prove_is_captured_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    takes_for_one(monkeypatch, {})
    qfpass.compile(decoder(), context_length=64)
    model = WithConstant().eval()
    qfpass.compile(model, context_length=64)
    assert "can't be proven" in caplog.text
    assert_is_the_model(kept_under(DIGITS, model), model)


def test_layers_that_are_not_alike_after_all_are_captured_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claimed = {f"model.layers.{i}": "model.layers.0" for i in (1, 2)}
    takes_for_one(monkeypatch, claimed)
    model = decoder(layers=3)
    own = model.layers[1].forward
    model.layers[1].forward = lambda *given: 2 * own(*given)
    with caplog.at_level(logging.DEBUG, "qfpass"):
        qfpass.compile(model, context_length=64)
    assert "can't be proven" in caplog.text
    assert_is_the_model(kept_under(DIGITS, model), model)


def test_what_is_refused_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(import_module("qfpass.proof.prove"), "find_attentions", _none)
        with pytest.raises(NoAttentionError):
            qfpass.compile(decoder(), context_length=64)
    qfpass.compile(decoder(), context_length=64, backend="eager")
    qfpass.compile(decoder(), context_length=64, verify=False)
    assert not folder.exists()


def _none(*_: Any) -> None:
    raise NoAttentionError("none")


def test_sizes_that_an_identity_may_not_tell_are_not_kept(folder: Path) -> None:
    def mask_of(positions: torch.Tensor) -> torch.Tensor:
        distance = positions[:, None, :, None] - positions[:, None, None, :]
        return (distance >= 0) & (distance < min(positions.shape[1], 200))

    capture_and_keep(decoder(masked(mask_of)))
    assert kept_of(decoder(masked(mask_of))) is None
    assert not folder.exists()


def test_a_broken_file_is_told_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    capture_and_keep(decoder())
    file = file_for(decoder())
    assert file is not None
    file.write_bytes(b"not a graph")
    assert kept_of(decoder()) is None
    assert str(file) in caplog.text
    capture_and_keep(decoder())
    assert kept_of(decoder()) is not None


def test_nothing_is_kept_where_inductor_keeps_nothing() -> None:
    with inductor_config.patch(force_disable_caches=True):
        assert file_for(decoder()) is None
    with inductor_config.patch(fx_graph_cache=False):
        assert file_for(decoder()) is None


def test_a_folder_that_cannot_be_written_is_done_without(folder: Path) -> None:
    folder.write_text("in the way")
    capture_and_keep(decoder())
    assert kept_of(decoder()) is None


def test_a_write_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    capture_and_keep(decoder())
    assert list(folder.iterdir()) == []
