"""The terminal chat: each turn reads what is new, and says what it took."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from served import alone
from served_chat import chat_model, chat_tokenizer

from qfpass.serving import Sampling, Scheduler
from qfpass.serving.conversation import read_chat
from qfpass.tools.chat import Chat


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    with Scheduler(chat_model(), rows=1) as made:
        yield made


def chat(scheduler: Scheduler, lines: list[str], tokens: int = 8, system: str | None = None) -> Any:
    out = io.StringIO()
    made = Chat(
        scheduler, chat_tokenizer(), frozenset(), Sampling(), tokens, system, Console(file=out, width=200)
    )
    rest = iter(lines)

    def read_line() -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    made.run(read_line)
    return made, out.getvalue()


def test_a_conversation_goes_on(scheduler: Scheduler) -> None:
    made, said = chat(scheduler, ["Hello there.", "", "And now?", "/exit", "never read"], system="Be kind.")
    assert [message["role"] for message in made.messages] == ["system", *["user", "assistant"] * 2]
    prompt = read_chat(chat_tokenizer(), made.messages[:2])
    written = alone(chat_model(), prompt.ids, 8, cuts=prompt.marks)
    first = chat_tokenizer().decode(written, skip_special_tokens=True)
    assert made.messages[2]["content"] == first and first in said
    status = [line for line in said.splitlines() if "tokens seen" in line]
    assert f"{len(prompt.ids) + 8} tokens seen · 0 cached" in status[0]
    assert "MiB of keys and values" in status[0]
    assert int(status[1].split(" · ")[2].split()[0]) >= prompt.marks[-1]


def test_a_new_conversation_forgets_the_old_one(scheduler: Scheduler) -> None:
    made, _ = chat(scheduler, ["Hello.", "/new", "Good day."], system="Be kind.")
    assert [message["content"] for message in made.messages[:2]] == ["Be kind.", "Good day."]
    assert len(made.messages) == 3


def test_a_refused_turn_is_taken_back(scheduler: Scheduler) -> None:
    made, said = chat(scheduler, ["x" * 300, "Hello."])
    assert "qfpass: the prompt has" in said and len(made.messages) == 2
