"""An answer's tokens as text, piece by piece, up to a stop string."""

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\ufffd"  # a tokenizer's text for bytes that are part of a character


class AnswerText:
    """The text of the tokens that are added; the pieces together are the text.

    Attributes:
        is_stopped: whether a stop string has come; it and what follows are not part of the text.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._ids = list[int]()
        # Tokens [from, to) are decoded with the next ones: whether a space stands between depends on both.
        self._from = self._to = 0
        self._held = ""  # what may be the beginning of a stop string
        self.is_stopped = False

    def add(self, token: int) -> str:
        """The text that is certain now and was not before; possibly none."""
        self._ids.append(token)
        before, now = self._decode(self._to), self._decode(None)
        if len(now) <= len(before) or now.endswith(_INCOMPLETE):
            return ""
        self._from, self._to = self._to, len(self._ids)
        return self._until_stop(now[len(before) :])

    def finish(self) -> str:
        """The text that was held back until now."""
        rest = "" if self.is_stopped else self._decode(None)[len(self._decode(self._to)) :]
        text = self._until_stop(rest) + self._held
        self._from = self._to = len(self._ids)
        self._held = ""
        return text

    def _decode(self, end: int | None) -> str:
        return str(self._tokenizer.decode(self._ids[self._from : end], skip_special_tokens=True))

    def _until_stop(self, new: str) -> str:
        """What of the held text and `new` can be given away."""
        text = self._held + new
        found = [at for at in map(text.find, self._stop) if at >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        most = min(len(text), max(map(len, self._stop), default=0))
        held = next((n for n in range(most, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]
