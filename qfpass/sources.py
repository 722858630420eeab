"""Which code of qfpass this is: what is kept between processes was made by it."""

import hashlib
from functools import cache
from pathlib import Path

_KINDS = (".py", ".cpp")


@cache
def digest() -> str:
    """64 hexadecimal digits that another version of any source file changes."""
    return digest_of(Path(__file__).parent)


def digest_of(folder: Path) -> str:
    """The same of the source files under `folder`, by name and content."""
    found = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.suffix in _KINDS):
        found.update(f"{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()
