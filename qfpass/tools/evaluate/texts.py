"""Texts from files, cut into rows of tokens."""

from pathlib import Path
from random import Random
from typing import Any

import torch

from ...errors import InputError

SUFFIXES = (".txt", ".md")


def read_texts(path: str | Path) -> list[str]:
    """The text of a file, or of each .txt and .md file of a folder in the order of their names.

    Raises:
        InputError: nothing there, or not UTF-8 text.
    """
    path = Path(path).expanduser()
    files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES) if path.is_dir() else [path]
    try:
        texts = [file.read_text(encoding="utf-8") for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read text from {path} ({error}): give a UTF-8 file or folder.") from error
    if not any(text.strip() for text in texts):
        raise InputError(
            f"{path} holds no text: give a file, or a folder with {' or '.join(SUFFIXES)} files."
        )
    return texts


def read_text(path: str | Path) -> str:
    """The texts of `read_texts`, joined by blank lines."""
    return "\n\n".join(read_texts(path))


def token_rows(tokenizer: Any, text: str, *, tokens: int, rows: int, seed: int = 0) -> torch.Tensor:
    """`rows` pieces of `tokens` tokens of a text as ids [rows, tokens], none overlapping, chosen by `seed`.

    Raises:
        InputError: the text is too short.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    pieces = len(ids) // tokens
    if pieces < rows:
        raise InputError(
            f"the text has {len(ids)} tokens, too few for {rows} pieces of {tokens}: give more text, or ask "
            "for fewer or shorter pieces."
        )
    chosen = sorted(Random(seed).sample(range(pieces), rows))
    return torch.tensor([ids[i * tokens : (i + 1) * tokens] for i in chosen])
