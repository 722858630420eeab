"""How the texts begin that a model writes to be tuned on, and what is made of them."""

from collections.abc import Sequence
from itertools import cycle, islice
from random import Random
from typing import Any

MOST_LIKELY = 50  # a token of these texts is drawn from so many

OPENINGS = {
    "prose": (
        "The morning after the storm, the old harbour looked different. The fishermen who",
        "There is a question that every engineer asks sooner or later, and the honest answer is",
        "Her grandfather had kept a diary for forty years, and on the first page he had written",
        "In the history of medicine, few discoveries have mattered as much as",
    ),
    "list": (
        "Here are twenty practical tips for moving to a new city:\n\n1. Before you pack,",
        "Shopping list for the week:\n- two loaves of bread\n- tomatoes\n- rice\n-",
        "Frequently asked questions\n\n1. How do I reset my password?\nAnswer:",
    ),
    "code": (
        "import json\nfrom dataclasses import dataclass\n\n\n@dataclass\nclass Order:\n    name: str\n",
        "#include <stdio.h>\n#include <stdlib.h>\n\n/* A queue of fixed size. */\ntypedef struct {\n    int",
        "def read_table(path):\n    rows = []\n    with open(path) as file:\n        for line in file:\n  ",
    ),
    "table": (
        "| Name | Town | Born | Profession |\n| --- | --- | --- | --- |\n| Anna Berg | Oslo | 1961 |",
        "Date,Product,Units,Price\n2021-01-04,Lamp,12,39.90\n2021-01-05,Chair,4,",
    ),
    "dialogue": (
        "User: Can you help me plan a trip to the mountains?\nAssistant: Of course. When do you want",
        'INTERVIEWER: When did you first come to this town?\n\nMARTHA: I was nine years old. My father',
        '"Are you coming or not?" asked Peter, with one hand on the door.\n\n"Give me a minute,"',
        "Customer: My order arrived broken.\nAgent: I am sorry to hear that. Could you tell me your",
    ),
}  # fmt: skip


def openings(tokenizer: Any, rows: int, random: Random) -> list[list[int]]:
    """The first token ids of so many texts, kind after kind, all as long as the shortest."""
    kinds = [cycle(random.sample(texts, len(texts))) for texts in OPENINGS.values()]
    texts = [next(kind) for kind in islice(cycle(kinds), rows)]
    ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    shortest = min(map(len, ids))
    return [each[:shortest] for each in ids]


def long_texts(written: Sequence[list[int]], tokens: int, count: int, random: Random) -> list[list[int]]:
    """So many texts of at least `tokens` token ids, each made of written ones in a random order."""
    texts = []
    for _ in range(count):
        parts = list[int]()
        while len(parts) < tokens:
            for text in random.sample(written, len(written)):
                parts += text
        texts.append(parts)
    return texts
