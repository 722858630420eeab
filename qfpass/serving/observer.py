"""What a scheduler tells about its work; metrics are made of it."""

from .answer import Answer


class Observer:
    """Does nothing; a subclass counts what it is told. Its methods run in the scheduler's thread."""

    def first_token(self, seconds: float) -> None:
        """A first token came so long after its request."""

    def next_token(self, seconds: float) -> None:
        """A further token came so long after the one before it."""

    def ended(self, answer: Answer, tokens_read: int) -> None:
        """An answer has ended; its row had read so many tokens, cached ones among them."""
