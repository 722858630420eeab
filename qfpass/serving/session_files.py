"""Sessions as files in a folder; the least recently used go when it is full."""

import logging
import os
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from ..errors import SessionError
from ..sessions.session import Session

_log = logging.getLogger(__name__)


class SessionFiles:
    """A folder of sessions, by the digest and the number of the ids that they have read.

    What is in the folder is all that is known, so several processes may share one, or one process find what
    an earlier one has left.

    Args:
        folder: None for a temporary one, which `close` deletes. Only this user may read what is made there.
        most_bytes: of all files.
        identity: of the model that the sessions belong to; other models' are in other folders.

    Attributes:
        outlives: whether the files stay after `close`.
    """

    def __init__(self, folder: Path | None, most_bytes: int, identity: Mapping[str, str]) -> None:
        self._most_bytes, self.outlives = most_bytes, folder is not None
        self._temporary = tempfile.TemporaryDirectory(prefix="qfpass-") if folder is None else None
        if self._temporary is not None:
            self._folder = Path(self._temporary.name)
        else:
            assert folder is not None
            own = sha256(repr(sorted(identity.items())).encode()).hexdigest()[:16]
            self._folder = folder / own
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._listed())

    def lengths(self) -> set[int]:
        """The numbers of ids that sessions in the folder have read."""
        return {int(file.name.split(".")[1]) for *_, file in self._listed()}

    def has(self, digest: bytes, tokens: int) -> bool:
        """Whether there is a session of these ids."""
        return self._file(digest, tokens).is_file()

    def read(self, digest: bytes, tokens: int, session: Session) -> Session | None:
        """`session`, filled with the file's contents; None, with a warning, if that can't be read."""
        file = self._file(digest, tokens)
        try:
            loaded = session.load(file)
            os.utime(file)
        except (SessionError, OSError) as error:
            _log.warning("a kept session is lost: %s", error)
            file.unlink(missing_ok=True)
            return None
        return loaded

    def write(self, digest: bytes, tokens: int, session: Session) -> None:
        """Write a session, if it fits into the folder's bytes at all; a failure is a warning."""
        if session.nbytes > self._most_bytes or self.has(digest, tokens):
            return
        file = self._file(digest, tokens)
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            session.save(part)
            size = part.stat().st_size  # a little more than the session's: a header, and the ids
            if size > self._most_bytes:
                part.unlink()
                return
            self._delete_oldest(self._most_bytes - size)
            os.replace(part, file)
        except (SessionError, OSError) as error:
            part.unlink(missing_ok=True)
            _log.warning("a kept session is lost: %s", error)

    def close(self) -> None:
        """Delete a temporary folder."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def _file(self, digest: bytes, tokens: int) -> Path:
        return self._folder / f"{digest.hex()}.{tokens}.safetensors"

    def _listed(self) -> list[tuple[float, int, Path]]:
        """When each file was used last, its bytes, and the file; the least recently used first."""
        found = []
        for file in self._folder.glob("*.*.safetensors"):
            try:
                about = file.stat()
            except OSError:  # another process has just deleted it
                continue
            found.append((about.st_mtime, about.st_size, file))
        return sorted(found)

    def _delete_oldest(self, most_bytes: int) -> None:
        """Delete files until those left have at most so many bytes."""
        listed = self._listed()
        total = sum(size for _, size, _ in listed)
        for _, size, file in listed:
            if total <= most_bytes:
                break
            file.unlink(missing_ok=True)
            total -= size
