"""A digest of qfpass's code, by which caches tell what this version made from what others made."""

import hashlib
from pathlib import Path

_KINDS = (".py", ".cpp")
# These don't decide what is captured or compiled, so what caches keep stays valid where one of them changes.
_NOT_DIGESTED = ("tools", "training")


def digest_of(folder: Path) -> str:
    """The digest, 64 hexadecimal digits, of names and contents of the sources that decide the code."""
    found = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.suffix in _KINDS and file.is_file()):
        name = file.relative_to(folder)
        if name.parts[0] not in _NOT_DIGESTED:
            found.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


# Computed on import: files that are installed later aren't the code that runs.
DIGEST = digest_of(Path(__file__).parent)
