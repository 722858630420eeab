"""Sessions stepped in any order, each as if alone; and calls of any kind, each right or refused.

QFPASS_EXAMPLES=1000 runs as many random interleavings and five times as many sequences of fuzzed calls, which
`make fuzz` does.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import run_plainly
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import padded, text
from tiny import FAMILIES

import qfpass
from qfpass import QFPassError, Session

EXAMPLES = int(os.environ.get("QFPASS_EXAMPLES", "8"))
SESSIONS, CONTEXT = 8, 70
# No ties in the "random" score: rounding never decides what is evicted.
MODEL = run_plainly(
    qfpass.compile(
        FAMILIES["gemma3"](window=5), budget=12, chunk=8, recent=3, sinks=2, score="random", backend="eager",
        context_length=CONTEXT, overflow="rerotate", verify=False,
    )
)  # fmt: skip


class Told:
    """A session, with all that it was told and answered since it was empty."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.calls: list[dict[str, torch.Tensor]] = []
        self.answers: list[torch.Tensor] = []

    def tell(self, **inputs: torch.Tensor) -> None:
        self.answers.append(MODEL(**inputs, past_key_values=self.session).logits)
        self.calls.append(inputs)

    def copy_to(self, other: "Told", session: Session) -> None:
        other.session, other.calls, other.answers = session, list(self.calls), list(self.answers)

    def check_alone(self) -> None:
        """A new session, told the same with no other around, says the same and ends the same.

        Up to rounding: where its tensors lie in memory changes the order in which kernels add.
        """
        alone = MODEL.session(budget=self.session.slots)
        for inputs, answer in zip(self.calls, self.answers, strict=True):
            actual = MODEL(**inputs, past_key_values=alone).logits
            torch.testing.assert_close(actual, answer, atol=1e-5, rtol=1e-5)
        assert (alone.tokens_seen, alone.columns) == (self.session.tokens_seen, self.session.columns)
        if self.calls:
            torch.testing.assert_close(contents(alone), contents(self.session), atol=1e-5, rtol=1e-5)


def contents(session: Session) -> list[torch.Tensor]:
    return [tensor.clone() for store in session.stores for tensor in store]


def check_same(actual: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    assert len(actual) == len(wanted)
    assert all(map(torch.equal, actual, wanted))


DEEDS = ("read", "read", "step", "step", "step", "fork", "reset", "save", "load")
deeds = st.lists(
    st.tuples(
        st.sampled_from(DEEDS), st.integers(0, SESSIONS - 1), st.integers(0, SESSIONS - 1), st.integers(1, 40)
    ),
    min_size=10,
    max_size=40,
)


@given(deeds=deeds)
@settings(max_examples=EXAMPLES)
def test_each_session_is_as_if_alone(deeds: list[tuple[str, int, int, int]]) -> None:
    told = [Told(MODEL.session(budget=(None, 8)[i % 2])) for i in range(SESSIONS)]
    saved = [Told(MODEL.session(budget=(None, 8)[i % 2])) for i in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        for number, (deed, one, two, length) in enumerate(deeds):
            this, path = told[one], Path(folder) / str(one % 2)
            if deed == "read":
                this.tell(input_ids=text(length, seed=number))
            elif deed == "step":
                this.tell(input_ids=text(1, seed=number))
            elif deed == "reset":
                this.session.reset()
                this.calls, this.answers = [], []
            elif deed == "fork" and one % 2 == two % 2:
                this.copy_to(told[two], this.session.fork())
            elif deed == "save":
                this.session.save(path)
                this.copy_to(saved[one % 2], this.session)
            elif deed == "load" and path.exists():
                saved[one % 2].copy_to(this, this.session.load(path))
    for each in told:
        each.check_alone()


def corrupt(inputs: dict[str, Any], how: str, number: int) -> dict[str, Any]:
    """The inputs with something wrong, or odd but right."""
    ids: torch.Tensor = inputs["input_ids"]
    mask: torch.Tensor = inputs["attention_mask"]
    changes: dict[str, Callable[[], dict[str, Any]]] = {
        "nothing": dict,
        "no mask": lambda: {"attention_mask": None},
        "a mask of floats": lambda: {"attention_mask": mask.float()},
        "a mask of bools": lambda: {"attention_mask": mask.bool()},
        "a mask of others": lambda: {"attention_mask": torch.randint(-1, 3, mask.shape)},
        "a random mask": lambda: {"attention_mask": torch.randint(0, 2, mask.shape)},
        "a longer mask": lambda: {"attention_mask": torch.ones(len(ids), ids.shape[1] + number % 70)},
        "a mask of other rows": lambda: {"attention_mask": mask[:1]},
        "no mask at all": lambda: {"attention_mask": "mask"},
        "small ids": lambda: {"input_ids": ids.to((torch.int32, torch.int16, torch.uint8)[number % 3])},
        "floats": lambda: {"input_ids": ids.float()},
        "large ids": lambda: {"input_ids": ids + number},
        "negative ids": lambda: {"input_ids": ids - number},
        "one row": lambda: {"input_ids": ids[0], "attention_mask": None},
        "fewer rows": lambda: {"input_ids": ids[1:], "attention_mask": mask[1:]},
        "no column": lambda: {"input_ids": ids[:, :0], "attention_mask": mask[:, :0]},
        "a list": lambda: {"input_ids": ids.tolist()},
        "positions": lambda: {"position_ids": torch.arange(ids.shape[1])[None] + number % 5},
        "odd positions": lambda: {"position_ids": torch.ones(ids.shape)},
        "few logits": lambda: {"logits_to_keep": number % 9},
        "odd logits": lambda: {"logits_to_keep": (-1, 1.5, "all", True, torch.tensor([]))[number % 5]},
        "chosen logits": lambda: {"logits_to_keep": torch.tensor([number % 7 - 3, number % 5])},
        "strided": lambda: {"input_ids": ids.repeat_interleave(2, dim=1)[:, ::2]},
    }
    return {**inputs, **changes[how]()}


HOWS = (
    "nothing", "nothing", "no mask", "a mask of floats", "a mask of bools", "a mask of others",
    "a random mask",
    "a longer mask", "a mask of other rows", "no mask at all", "small ids", "floats", "large ids",
    "negative ids", "one row", "fewer rows", "no column", "a list", "positions", "odd positions",
    "few logits", "odd logits", "chosen logits", "strided",
)  # fmt: skip

calls = st.lists(
    st.tuples(
        st.lists(st.integers(0, 30), min_size=3, max_size=3),
        st.sampled_from(("left", "right")),
        st.sampled_from(HOWS),
        st.integers(0, 99),
    ),
    min_size=1,
    max_size=6,
)


class Rows:
    """A session of three rows beside three sessions of one."""

    def __init__(self) -> None:
        self.session = MODEL.session()
        self.alone = [MODEL.session() for _ in range(3)]

    def check(self, inputs: dict[str, Any], logits: torch.Tensor) -> None:
        """An accepted call gave each row what it gets alone, at the last column."""
        ids, mask = inputs["input_ids"].long(), inputs.get("attention_mask")
        keep = inputs.get("logits_to_keep", 0)
        self.alone = self.alone[: len(ids)]  # the first call says how many rows there are
        for i, alone in enumerate(self.alone):
            shown = torch.ones(ids.shape[1]) if mask is None else mask[i, -ids.shape[1] :]
            own = ids[i : i + 1, shown.bool()]
            if own.shape[1] == 0:
                assert not logits[i].any()
                continue
            wanted = MODEL(own, past_key_values=alone, logits_to_keep=1).logits[0, 0]
            if not isinstance(keep, torch.Tensor):
                torch.testing.assert_close(logits[i, -1], wanted, atol=1e-4, rtol=1e-4)
        assert self.session.row_tokens == tuple(alone.tokens_seen for alone in self.alone)


@given(calls=calls)
@settings(max_examples=5 * EXAMPLES)
def test_any_call_is_right_or_refused(calls: list[tuple[list[int], str, str, int]]) -> None:
    rows, other = Rows(), MODEL.session()
    MODEL(text(20), past_key_values=other)
    bystander = contents(other)
    for number, (lengths, side, how, extra) in enumerate(calls):
        texts = [text(n, seed=7 * number + i + extra) for i, n in enumerate(lengths)]
        inputs = corrupt(padded(texts, side), how, extra)
        before, state = contents(rows.session), rows.session.state
        try:
            logits = MODEL(**inputs, past_key_values=rows.session).logits
        except QFPassError:
            assert rows.session.state == state
            check_same(contents(rows.session), before)
        else:
            rows.check(inputs, logits)
    check_same(contents(other), bystander)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_memory_does_not_grow() -> None:
    """Sessions come, fork and go, calls fail: what is held stays the same but for the allocator's slack."""
    before = 0
    for number in range(40 * EXAMPLES):
        if number == 20 * EXAMPLES:
            before = resident_bytes()
        rows = Rows()
        MODEL(**padded([text(n, seed=number) for n in (5, 20, 9)], "left"), past_key_values=rows.session)
        rows.session.fork()
        with pytest.raises(QFPassError):
            MODEL(text(1), past_key_values=rows.session)
    assert resident_bytes() < before + 4 * 2**20
