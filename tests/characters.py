"""A tokenizer of characters, for tests that need one."""

from types import SimpleNamespace


class CharacterTokenizer:
    """One token a character; called as transformers' tokenizers are."""

    vocabulary = 128

    def __call__(self, text: str, **settings: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[min(ord(c), 127) for c in text])

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))
