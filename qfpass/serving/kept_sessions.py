"""Sessions kept where texts ended, for requests whose ids go on from there.

They take no tokens back, so a session serves exactly the texts that begin with all of its ids. They are
found by a digest of the ids. What is kept is never read into: a row gets a copy. The least recently used go
from memory to disk.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..sessions.session import Session
from .session_files import SessionFiles


class _KeptSession(NamedTuple):
    tokens: int
    session: Session


class KeptSessions:
    """Sessions by the ids that they have read, in memory and on disk.

    Args:
        new_session: makes an empty session.
        session_nbytes: of each session.
        memory: at most so many bytes of sessions in memory.
        files: those on disk.
    """

    def __init__(
        self, new_session: Callable[[], Session], session_nbytes: int, memory: int, files: SessionFiles
    ) -> None:
        self._new_session, self._files = new_session, files
        self._session_nbytes, self._most = session_nbytes, memory // session_nbytes
        self._kept = OrderedDict[bytes, _KeptSession]()  # the least recently used first

    @property
    def nbytes(self) -> int:
        """Bytes of the sessions in memory."""
        return len(self._kept) * self._session_nbytes

    @property
    def disk_nbytes(self) -> int:
        """Bytes of the sessions on disk."""
        return self._files.nbytes

    def find(self, ids: Sequence[int], name: str, shared: int) -> tuple[Session | None, int]:
        """The session that has read most of the beginning of `ids`, and how many tokens that is.

        At least one id is left to read. It may be of the conversation `name`, or a shared one of exactly the
        first `shared` ids. The session must not be read into.
        """
        lengths = {kept.tokens for kept in self._kept.values()} | self._files.lengths()
        found = digests(ids, [n for n in lengths if n < len(ids)], name)
        candidates = [(length, digest) for length, digest in found.items()]
        if 0 < shared < len(ids):
            candidates.append((shared, digests(ids, [shared], None)[shared]))
        for length, digest in sorted(candidates, reverse=True):
            session = self._take(digest, length)
            if session is not None:
                return session, length
        return None, 0

    def touch(self, digest: bytes, tokens: int) -> bool:
        """Whether a session of these ids is kept; it then counts as used now."""
        if digest in self._kept:
            self._kept.move_to_end(digest)
        return digest in self._kept or self._files.has(digest, tokens)

    def make_room(self) -> bool:
        """Whether one more fits in memory, once the least recently used sessions have gone to disk."""
        if self._most == 0:
            return False
        while len(self._kept) >= self._most:
            digest, kept = self._kept.popitem(last=False)
            self._files.write(digest, kept.tokens, kept.session)
        return True

    def keep(self, digest: bytes, tokens: int, session: Session) -> None:
        """Keep a session, for which `make_room` has made room, under the digest of the ids it has read."""
        self._kept[digest] = _KeptSession(tokens, session)
        self._kept.move_to_end(digest)
        if self._files.outlives:  # for other processes, and in case this one ends
            self._files.write(digest, tokens, session)

    def close(self) -> None:
        """Forget all sessions in memory, and what is on disk in a temporary folder."""
        self._kept.clear()
        self._files.close()

    def _take(self, digest: bytes, tokens: int) -> Session | None:
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return self._kept[digest].session
        if not self._files.has(digest, tokens) or not self.make_room():
            return None
        session = self._files.read(digest, tokens, self._new_session())
        if session is not None:
            self._kept[digest] = _KeptSession(tokens, session)
        return session


def digests(ids: Sequence[int], lengths: Iterable[int], name: str | None) -> dict[int, bytes]:
    """For each n of `lengths` the digest of the first n ids.

    `name`: of the conversation that has read them; None for what everyone shares.
    """
    whose = b"everyone" if name is None else b"conversation" + name.encode()
    running = hashlib.sha256(len(whose).to_bytes(8, "little") + whose)
    data, found, at = np.asarray(ids, dtype=np.int64).tobytes(), dict[int, bytes](), 0
    for length in sorted(set(lengths)):
        running.update(data[8 * at : 8 * length])
        found[length], at = running.digest(), length
    return found
