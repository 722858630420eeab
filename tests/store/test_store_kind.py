"""A store kind of one's own is used as the built-in ones are; one that can't work is refused."""

from pathlib import Path
from typing import Any, NamedTuple

import own_store
import pytest
import torch
from decoders import text
from often import often
from own_store import Float8Slots
from tiny import FAMILIES
from torch import Tensor

import qfpass
from qfpass.errors import ConfigError, PackageError
from qfpass.store.int8_slots import Int8Slots
from qfpass.store.kv_form import KVForm
from qfpass.store.slots import Slots
from qfpass.store.store_kind import empty_store, first_slots, kv_nbytes, token_nbytes
from qfpass.store.try_store import try_store

CPU = torch.device("cpu")
SETTINGS: dict[str, Any] = {
    "budget": 16, "context_length": 64, "chunk": 8, "score": "random", "backend": "eager", "verify": False,
}  # fmt: skip


class ValuesFirst(NamedTuple):
    """The model's own dtype, as `Slots`, but in another order and in one tensor."""

    both: Tensor
    scores: Tensor
    positions: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, scores: Tensor, positions: Tensor) -> "ValuesFirst":
        return cls(torch.cat([values, keys], dim=-1), scores, positions)

    def dense(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        values, keys = self.both.to(dtype).chunk(2, dim=-1)
        return keys, values


@pytest.mark.parametrize("kind", [Slots, Int8Slots, Float8Slots, ValuesFirst])
def test_an_empty_store_has_the_tensors_of_its_kind(kind: Any) -> None:
    store = empty_store(kind, 2, 5, KVForm(3, 8, 8, torch.float32, CPU))
    assert all(tensor.shape[:3] == (2, 3, 5) for tensor in store)
    assert bool((store.scores == -torch.inf).all() and (store.positions == -1).all())
    assert kv_nbytes(store) == 2 * 5 * token_nbytes(kind, KVForm(3, 8, 8, torch.float32, CPU))
    assert [tensor.shape[2] for tensor in first_slots(store, 4)] == [4] * len(store)


@pytest.mark.parametrize("kind", [Slots, Int8Slots, Float8Slots])
def test_scores_are_float32_whatever_the_default_dtype(kind: Any) -> None:
    """In bfloat16 positions from 256 on would be equal scores."""
    model = FAMILIES["llama"]()
    torch.set_default_dtype(torch.bfloat16)
    try:
        compiled: Any = qfpass.compile(model, **{**SETTINGS, "score": "recency"}, store=kind)
        session = compiled.session()
        compiled(text(40), past_key_values=session)
    finally:
        torch.set_default_dtype(torch.float32)
    assert session.stores[0].scores.dtype == torch.float32


def test_bytes_of_a_slot() -> None:
    kinds = (Slots, Int8Slots, Float8Slots, ValuesFirst)
    assert [token_nbytes(kind, KVForm(1, 8, 4, torch.float32, CPU)) for kind in kinds] == [48, 20, 12, 48]


@pytest.mark.parametrize("backend", often(["eager"], ["eager", "inductor"]))
def test_another_order_changes_nothing(backend: str, tmp_path: Path) -> None:
    model, ids = FAMILIES["llama"](), text(60)
    ours: Any = qfpass.compile(model, **{**SETTINGS, "backend": backend}, store=ValuesFirst)
    plain: Any = qfpass.compile(model, **SETTINGS)
    assert [site.stored for site in qfpass.report(ours).sites] == ["ValuesFirst"] * 2
    session, theirs = ours.session(), plain.session()
    for piece in ids.split((30, 1, 1, 9, 1, 18), dim=1):
        actual = ours(piece, past_key_values=session).logits
        torch.testing.assert_close(actual, plain(piece, past_key_values=theirs).logits, atol=1e-4, rtol=1e-3)
    assert session.kv_nbytes == theirs.kv_nbytes
    session.fork().save(tmp_path / "session")
    again = ours.session().load(tmp_path / "session")
    expected = ours(ids[:, :3], past_key_values=session).logits
    torch.testing.assert_close(ours(ids[:, :3], past_key_values=again).logits, expected)


class Rounded(NamedTuple):
    """What `Float8Slots` gives back, held in the model's own dtype."""

    keys: Tensor
    values: Tensor
    scores: Tensor
    positions: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, scores: Tensor, positions: Tensor) -> "Rounded":
        small = Float8Slots.of(keys, values, scores, positions)
        return cls(*small.dense(keys.dtype), scores, positions)

    def dense(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.keys.to(dtype), self.values.to(dtype)


def test_a_smaller_kind_has_more_slots_and_says_what_the_rounded_keys_say() -> None:
    settings = {**SETTINGS, "budget": None, "ratio": 4}
    ours: Any = qfpass.compile(FAMILIES["llama"](), **settings, store=Float8Slots)
    plain: Any = qfpass.compile(FAMILIES["llama"](), **settings)
    assert ours.session().slots > 2 * plain.session().slots
    small, rounded = (
        qfpass.compile(FAMILIES["llama"](), **SETTINGS, store=kind) for kind in (Float8Slots, Rounded)
    )
    torch.testing.assert_close(small(text(40)).logits, rounded(text(40)).logits)


class Broken(NamedTuple):
    """Base of the kinds below, each with one fault."""

    keys: Tensor
    values: Tensor
    scores: Tensor
    positions: Tensor


def broken(**methods: Any) -> Any:
    """A kind like `Slots` but for these methods."""
    own = {"of": Slots.of.__func__, "dense": Slots.dense, "__slots__": ()}  # type: ignore[attr-defined]
    return type("Faulty", (Broken,), {**own, "of": classmethod(own["of"]), **methods})


FAULTS = {
    "fails for keys": broken(dense=lambda self, dtype: 1 / 0),
    "gives keys of shape": broken(of=classmethod(lambda cls, k, v, s, p: cls(k.flatten(2), v, s, p))),
    "keep scores": broken(of=classmethod(lambda cls, k, v, s, p: cls(k, v, s + 1, p))),
    "empty slot": broken(dense=lambda self, dtype: (self.keys / self.keys.abs(), self.values)),
    "reads keys of shape": broken(dense=lambda self, dtype: (self.keys[..., :2], self.values)),
    "changes a token's keys": broken(
        of=classmethod(lambda cls, k, v, s, p: cls(k - k.mean(2, keepdim=True), v, s, p))
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_kind_that_cannot_work_is_refused(what: str) -> None:
    with pytest.raises(ConfigError, match=f"the store Faulty.*{what}|must {what}"):
        try_store(FAULTS[what], KVForm(2, 8, 4, torch.float32, CPU))
    with pytest.raises(ConfigError, match="Faulty"):
        qfpass.compile(FAMILIES["llama"](), **SETTINGS, store=FAULTS[what])


@pytest.mark.parametrize("kind", [Slots, Int8Slots, Float8Slots, ValuesFirst])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kinds_that_work_are_not_refused(kind: Any, dtype: torch.dtype) -> None:
    try_store(kind, KVForm(3, 8, 8, dtype, CPU))


def test_what_is_no_kind_or_has_no_place_is_refused(tmp_path: Path) -> None:
    model = FAMILIES["llama"]()
    for store in (dict, "int8", torch.int8):
        with pytest.raises(ConfigError, match="NamedTuple class"):
            qfpass.compile(model, **SETTINGS, store=store)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give one of them"):
        qfpass.compile(model, **SETTINGS, store=Float8Slots, store_dtype=torch.int8)
    with pytest.raises(ConfigError, match="store out"):
        qfpass.compile(model, **SETTINGS, store=Float8Slots, overflow="rerotate")
    compiled = qfpass.compile(model, **{**SETTINGS, "backend": "inductor"}, store=Float8Slots)
    with pytest.raises(PackageError, match="Float8Slots is the caller's own"):
        compiled.export(tmp_path / "decoder")


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    own_store.main()
    assert "slots a head in Float8Slots" in capsys.readouterr().out
