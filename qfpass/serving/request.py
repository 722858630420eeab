"""What a scheduler is asked for."""

import time
from dataclasses import dataclass, field

from ..errors import DeadlineError
from .answer import Answer
from .sampling import Sampler


@dataclass
class Request:
    """A prompt and how it is to be answered, and how far that is.

    Attributes:
        ids: the whole text so far; turns that were read before are found by their ids.
        marks: ascending lengths of `ids` at which what has been read is kept for later requests.
        shared: the first so many ids may be kept for everyone, such as a system prompt; one of `marks`, or 0.
        name: the conversation's name; only requests of the same name go on where it stands.
        deadline: on the clock of `time.monotonic`; None for none.
        row: the pool's row that works on it.
        read: how many of the ids have been read.
        next_token: chosen and not yet read.
    """

    ids: list[int]
    answer: Answer
    sampler: Sampler
    max_new_tokens: int
    stop: frozenset[int] = frozenset()
    marks: tuple[int, ...] = ()
    shared: int = 0
    name: str = ""
    deadline: float | None = None
    row: int = -1
    read: int = 0
    next_token: int | None = field(default=None)

    @property
    def is_reading(self) -> bool:
        """Whether some of its prompt is left to read."""
        return self.read < len(self.ids)

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def text(self) -> list[int]:
        """All ids that its row has read."""
        # The newest token has been chosen, but not read.
        return self.ids[: self.read] if self.is_reading else self.ids + self.answer.tokens[:-1]

    def next_mark(self) -> int:
        """Up to which length of the ids the next chunk may read."""
        return next((mark for mark in self.marks if mark > self.read), len(self.ids))

    def lateness(self) -> DeadlineError:
        """The error that ends it once its deadline has passed."""
        return DeadlineError(
            f"the answer had {len(self.answer.tokens)} tokens at its deadline: allow more time, or ask for "
            "fewer tokens."
        )
