"""How the ids of a running generate lie to those that its session has read."""

from typing import Literal, NamedTuple


class Unread(NamedTuple):
    """What generate's ids have that a session hasn't read.

    Attributes:
        ahead: how many columns more the ids had than the session has read of them and of all others; negative
            if the ids are but the end of the text. While generate runs, the ids' columns from
            session.columns + ahead on are new.
        padded: "as masked" by the caller; "as guessed" by transformers, which takes every padding id for
            padding, also one that was read as a token; or "nowhere", in a single text that goes on.
    """

    ahead: int
    padded: Literal["as masked", "as guessed", "nowhere"]
