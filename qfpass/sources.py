"""Which code of qfpass this is: what is kept between processes was made by it."""

import hashlib
from pathlib import Path

_KINDS = (".py", ".cpp")
# Nothing here decides what is captured or compiled: what is kept stays good where one of these changes.
_BESIDE = ("evaluate", "bench", "census", "training", "cli.py", "options.py")


def digest_of(folder: Path) -> str:
    """64 hexadecimal digits of the source files under `folder` that decide the code, by name and content."""
    found = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.suffix in _KINDS and file.is_file()):
        name = file.relative_to(folder)
        if name.parts[0] not in _BESIDE:
            found.update(f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


# Read while the package is imported: what is installed later isn't what runs.
DIGEST = digest_of(Path(__file__).parent)
