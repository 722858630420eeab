"""Sessions kept where texts ended, for requests whose ids go on from there.

A session can't take tokens back, so it serves exactly the texts that begin with all of its ids. They are
found by a digest of the ids. What is kept is never read into: a row gets a copy. The least recently used go
to disk, and from there away.
"""

import hashlib
import logging
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import SessionError
from ..sessions.session import Session

_log = logging.getLogger(__name__)


@dataclass
class _KeptSession:
    tokens: int
    nbytes: int
    session: Session | None  # None while it is only on disk
    file: Path | None = None


class KeptSessions:
    """Sessions by the ids that they have read, in memory and on disk.

    Args:
        new_session: makes an empty session.
        memory: at most so many bytes of sessions in memory.
        disk: at most so many bytes of files.
        folder: where the files go, only readable to this user; None for a temporary folder.
    """

    def __init__(
        self, new_session: Callable[[], Session], memory: int, disk: int, folder: Path | None = None
    ) -> None:
        self._new_session, self._memory, self._disk = new_session, memory, disk
        self._folder = tempfile.TemporaryDirectory(prefix="qfpass-", dir=folder)
        self._kept = OrderedDict[bytes, _KeptSession]()  # the least recently used first
        self._lengths = Counter[int]()
        self._files_made = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the sessions in memory."""
        return sum(kept.nbytes for kept in self._kept.values() if kept.session is not None)

    @property
    def disk_nbytes(self) -> int:
        """Bytes of the sessions that have a file."""
        return sum(kept.nbytes for kept in self._kept.values() if kept.file is not None)

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, ids: Sequence[int], name: str, shared: int) -> tuple[Session | None, int]:
        """The session that has read most of the beginning of `ids`, and how many tokens that is.

        At least one id is left to read. It may be of the conversation `name`, or a shared one of exactly the
        first `shared` ids. The session must not be read into.
        """
        lengths = [n for n in self._lengths if n < len(ids)]
        names = digests(ids, lengths, name)
        if 0 < shared < len(ids):
            names[shared] = [*names.get(shared, []), shared_digest(ids, shared)]
        for length in sorted(names, reverse=True):
            for digest in names[length]:
                session = self._take(digest) if digest in self._kept else None
                if session is not None:
                    return session, length
        return None, 0

    def holds(self, digest: bytes) -> bool:
        """Whether a session of this digest is kept, in memory or on disk."""
        return digest in self._kept

    def touch(self, digest: bytes) -> None:
        """Count a kept session as used now."""
        self._kept.move_to_end(digest)

    def make_room(self, nbytes: int) -> bool:
        """Whether `nbytes` more fit in memory, once the least recently used sessions have gone to disk."""
        if nbytes > self._memory:
            return False
        for digest in list(self._kept):
            if self.nbytes + nbytes <= self._memory:
                break
            if self._kept[digest].session is not None:
                self._to_disk(digest)
        return True

    def keep(self, digest: bytes, tokens: int, session: Session) -> None:
        """Keep a session, for which `make_room` has made room, under the digest of the ids it has read."""
        self._forget(digest)
        self._kept[digest] = _KeptSession(tokens, session.nbytes, session)
        self._lengths[tokens] += 1

    def close(self) -> None:
        """Forget all sessions, and delete their files."""
        self._kept.clear()
        self._lengths.clear()
        self._folder.cleanup()

    def _take(self, digest: bytes) -> Session | None:
        kept = self._kept[digest]
        self._kept.move_to_end(digest)
        if kept.session is None:
            assert kept.file is not None
            if not self.make_room(kept.nbytes):
                return None
            try:
                kept.session = self._new_session().load(kept.file)
            except SessionError as error:
                _log.warning("a kept session is lost: %s", error)
                self._forget(digest)
        return kept.session

    def _to_disk(self, digest: bytes) -> None:
        kept = self._kept[digest]
        assert kept.session is not None
        if kept.file is None and kept.nbytes <= self._disk:
            self._make_disk_room(kept.nbytes)
            file = Path(self._folder.name) / f"{self._files_made}.safetensors"
            self._files_made += 1
            try:
                kept.session.save(file)
                kept.file = file
            except SessionError as error:
                file.unlink(missing_ok=True)
                _log.warning("a kept session is lost: %s", error)
        if kept.file is None:
            self._forget(digest)
        kept.session = None

    def _make_disk_room(self, nbytes: int) -> None:
        # First the files of what is in memory too; of each kind the least recently used.
        for digest, kept in sorted(self._kept.items(), key=lambda item: item[1].session is None):
            if self.disk_nbytes + nbytes <= self._disk:
                return
            if kept.file is not None:
                kept.file.unlink(missing_ok=True)
                kept.file = None
                if kept.session is None:
                    self._forget(digest)

    def _forget(self, digest: bytes) -> None:
        kept = self._kept.pop(digest, None)
        if kept is not None:
            self._lengths[kept.tokens] -= 1
            self._lengths += Counter()  # drops lengths that are no more
            if kept.file is not None:
                kept.file.unlink(missing_ok=True)


def shared_digest(ids: Sequence[int], length: int) -> bytes:
    """The digest of the first `length` ids, as what everyone shares."""
    return digests(ids, [length], None)[length][0]


def digests(ids: Sequence[int], lengths: Sequence[int], name: str | None) -> dict[int, list[bytes]]:
    """For each n of `lengths` the digest of the first n ids, in a list of one.

    `name`: of the conversation that has read them; None for what everyone shares.
    """
    whose = b"everyone" if name is None else b"conversation" + name.encode()
    running = hashlib.sha256(len(whose).to_bytes(8, "little") + whose)
    data, found, at = np.asarray(ids, dtype=np.int64).tobytes(), dict[int, list[bytes]](), 0
    for length in sorted(set(lengths)):
        running.update(data[8 * at : 8 * length])
        found[length], at = [running.digest()], length
    return found
