"""Without what only makes things faster numbers are the same: each entry fails alone, and all at once."""

import importlib
import pkgutil
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass import upstream
from qfpass.switches import NAMES, VARIABLE
from qfpass.upstream.entry import ENTRIES, OnlyFast, UpstreamWarning, name_of

SETTINGS: dict[str, Any] = {
    "budget": 12, "recent": 4, "context_length": 64, "chunk": 8, "score": "recency",
}  # fmt: skip
PROMPT, TOKENS, KEPT = 10, 20, 12
# Optimisations that show only where Inductor compiles.
OF_INDUCTOR = {"piecewise", "replay", "own_loops", "capture_cache"}


def only_fast() -> list[OnlyFast[Any, Any]]:
    for module in pkgutil.iter_modules(upstream.__path__):
        importlib.import_module(f"qfpass.upstream.{module.name}")
    return [entry for entry in ENTRIES if isinstance(entry, OnlyFast)]


class Broken:
    """Entries that fail; notes which were called."""

    def __init__(self, entries: Sequence[OnlyFast[Any, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.called = set[str]()
        for entry in entries:
            monkeypatch.setattr(entry, "function", self._failing(entry))

    def _failing(self, entry: OnlyFast[Any, Any]) -> Any:
        name, function = name_of(entry), entry.function

        def fail(*_: Any, **__: Any) -> Any:
            self.called.add(name)
            raise AttributeError("it has gone")

        fail.__name__, fail.__module__ = function.__name__, function.__module__
        return fail


@pytest.fixture(scope="module", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of this module alone: what is compiled for one case is found for the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(autouse=True)
def _nothing_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for entry in only_fast():
        monkeypatch.setattr(entry, "failure", None)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return FAMILIES["llama"](head_dim=16)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(61, (1, TOKENS), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def read(compiled: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The logits of a prompt and of steps that fill the stores, evict, and are replayed."""
    session = compiled.session()
    pieces = [ids[:, :PROMPT], *ids[:, PROMPT:].split(1, dim=1)]
    return torch.cat([compiled(piece, past_key_values=session).logits for piece in pieces], 1)


@pytest.fixture(scope="module")
def expected(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """With everything that isn't Inductor's; before something is evicted, what the model itself gives."""
    logits = read(qfpass.compile(model, backend="eager", **SETTINGS), ids)
    with torch.no_grad():
        torch.testing.assert_close(logits[:, :KEPT], model(ids).logits[:, :KEPT], rtol=1e-4, atol=1e-4)
    return logits


def check(compiled: nn.Module, ids: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(read(compiled, ids), expected, rtol=1e-4, atol=1e-4)


def states(compiled: nn.Module) -> dict[str, tuple[str, str]]:
    return {each.name: (each.state, each.reason) for each in qfpass.report(compiled).optimisations}


def warned(caught: Sequence[warnings.WarningMessage]) -> int:
    return sum(issubclass(each.category, UpstreamWarning) for each in caught)


def test_all_are_on(model: nn.Module, ids: torch.Tensor, expected: torch.Tensor) -> None:
    """And compile for the cases below what these have in common."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = qfpass.compile(model, **SETTINGS)
        check(compiled, ids, expected)
    assert set(states(compiled).values()) == {("on", "")}
    assert warned(caught) == 0


@pytest.mark.parametrize("entry", only_fast(), ids=name_of)
def test_without_one(
    entry: OnlyFast[Any, Any],
    model: nn.Module,
    ids: torch.Tensor,
    expected: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = Broken([entry], monkeypatch)
    backend = "inductor" if entry.optimisation in OF_INDUCTOR else "eager"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = qfpass.compile(model, backend=backend, **SETTINGS)
        check(compiled, ids, expected)
    assert broken.called == {name_of(entry)}
    assert warned(caught) == 1
    assert name_of(entry) in states(compiled)[entry.optimisation][1]


def test_without_any(
    model: nn.Module, ids: torch.Tensor, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(only_fast(), monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(qfpass.compile(model, **SETTINGS), ids, expected)
    assert broken.called and warned(caught) == len(broken.called)


def test_all_turned_off(
    model: nn.Module, ids: torch.Tensor, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is only fast is called then."""
    monkeypatch.setenv(VARIABLE, "all")
    broken = Broken(only_fast(), monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = qfpass.compile(model, **SETTINGS)
        check(compiled, ids, expected)
    assert not broken.called and warned(caught) == 0
    assert states(compiled) == dict.fromkeys(NAMES, ("off by choice", ""))
