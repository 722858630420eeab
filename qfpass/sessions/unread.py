"""What generate still has to read of the ids that it was given."""

from typing import Literal, NamedTuple


class Unread(NamedTuple):
    """What generate's ids have that a session hasn't read.

    Attributes:
        columns: how many of the last columns are new.
        padded: "as masked" by the caller; "as guessed" by transformers, which takes every padding id for
            padding, also one that was read as a token; or "nowhere", in a single text that goes on.
    """

    columns: int
    padded: Literal["as masked", "as guessed", "nowhere"]
