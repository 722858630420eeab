"""A graph that was captured before is read from its file, and is what capturing gives."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import Decoder, decoder, places, text
from tiny import FAMILIES
from torch import nn
from torch._inductor import config as inductor_config

import qfpass
from qfpass.errors import CaptureError
from qfpass.graph.capture import Captured
from qfpass.graph.capture_cache import capture_once

SCALES = {"logits": 1.0}  # what an identity can't see


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path / "qfpass"


def forbid_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Captured:
        raise AssertionError("captured once more")

    monkeypatch.setattr(importlib.import_module("qfpass.graph.capture_cache"), "capture", refuse)


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


class Scaled(Decoder):
    """Reads a table outside of itself."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return SCALES["logits"] * super().forward(input_ids, position_ids)


@pytest.mark.parametrize(
    "build", [*FAMILIES.values(), decoder, WithConstant], ids=[*FAMILIES, "plain", "constant"]
)
def test_the_second_model_takes_the_graph_of_the_first(
    build: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = capture_once(build().eval())
    forbid_capture(monkeypatch)
    model = build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    again = capture_once(model)
    assert first.file is None
    assert again.file == next(folder.iterdir())
    assert (again.device, again.dtype, again.batch) == (first.device, first.dtype, None)
    assert_is_the_model(again, model)
    theirs = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in again.module.parameters()} == theirs


def test_compile_goes_on_from_a_kept_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    first, ids = qfpass.compile(decoder(), context_length=64, ratio=1), text(20)
    forbid_capture(monkeypatch)
    model = decoder()
    second = qfpass.compile(model, context_length=64, ratio=1)
    assert str(qfpass.report(second)) == str(qfpass.report(first))
    torch.testing.assert_close(second(ids), model(ids, places(ids)), atol=1e-4, rtol=1e-4)


def test_a_graph_that_does_not_prove_is_captured_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Scaled().eval()
    qfpass.compile(model, context_length=64)
    monkeypatch.setitem(SCALES, "logits", 3.0)
    stale = capture_once(model)
    assert stale.file is not None
    with pytest.raises(AssertionError):
        assert_is_the_model(stale, model)
    qfpass.compile(model, context_length=64)
    assert_is_the_model(capture_once(model), model)


def test_rows_and_any_number_of_rows_are_two(folder: Path) -> None:
    for batch in (None, 2, None, 2):
        assert capture_once(decoder(), batch).batch == batch
    assert len(list(folder.iterdir())) == 2


def test_a_broken_file_is_told_and_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    capture_once(decoder())
    (file,) = folder.iterdir()
    file.write_bytes(b"not a graph")
    assert capture_once(decoder()).file is None
    assert str(file) in caplog.text
    assert capture_once(decoder()).file == file


def test_nothing_is_kept_where_inductor_keeps_nothing(folder: Path) -> None:
    with inductor_config.patch(force_disable_caches=True):
        capture_once(decoder())
    with inductor_config.patch(fx_graph_cache=False):
        capture_once(decoder())
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_done_without(folder: Path) -> None:
    folder.write_text("in the way")
    for _ in range(2):
        assert_is_the_model(capture_once(decoder()), decoder())


def test_a_model_without_identity_is_captured_each_time(folder: Path) -> None:
    for _ in range(2):
        model = decoder()
        model.register_forward_hook(lambda *_: None)
        assert capture_once(model).file is None
    assert not folder.exists()


def test_what_capture_refuses_is_refused() -> None:
    with pytest.raises(CaptureError, match="training mode"):
        capture_once(decoder().train())
