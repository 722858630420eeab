"""RULER's tasks: what a sample holds, how long it is, and that the seed decides it."""

import re
from collections import Counter
from typing import Any

import pytest

from qfpass.errors import InputError
from qfpass.tools.evaluate.prompts import Asker
from qfpass.tools.evaluate.ruler_benchmark.run import RulerSample, make_samples
from qfpass.tools.evaluate.ruler_benchmark.tasks import TASKS

LENGTH = 2500  # of the tiny tokenizer's short tokens
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
every_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture(scope="module")
def made(tokenizer: Any, essays: str) -> dict[str, list[RulerSample]]:
    asker = Asker(tokenizer)
    every = make_samples(asker, essays, length=LENGTH, tasks=tuple(TASKS), samples=2, seed=0)
    return {task: [s for s in every if s.task == task] for task in TASKS}


@every_task
def test_samples_fill_the_length_and_no_more(made: dict[str, list[RulerSample]], task: str) -> None:
    for sample in made[task]:
        assert LENGTH - 150 < sample.tokens <= LENGTH
        assert sample.prompt.new_tokens == TASKS[task].new_tokens


@every_task
def test_the_seed_decides(made: dict[str, list[RulerSample]], tokenizer: Any, essays: str, task: str) -> None:
    asker = Asker(tokenizer)
    again = make_samples(asker, essays, length=LENGTH, tasks=[task], samples=1, seed=0)
    assert again == made[task][:1]
    (other,) = make_samples(asker, essays, length=LENGTH, tasks=[task], samples=1, seed=1)
    texts = [sample.parts.context for sample in (*made[task], other)]
    assert len(set(texts)) == 3


@every_task
def test_answers_are_in_the_context(made: dict[str, list[RulerSample]], task: str) -> None:
    for sample in made[task]:
        assert len(set(sample.parts.outputs)) == len(sample.parts.outputs)
        for output in sample.parts.outputs:
            assert output in sample.parts.context
            assert output not in sample.parts.question + sample.parts.answer_prefix


NEEDLE = re.compile(r"Among the (\w+) to remember, this one is for (\S+): (\S+)\.(?=\s)")
SHAPES = {  # value kind, needles hidden (None: any number), keys asked for, outputs
    "niah_single_1": ("numbers", 1, 1, 1),
    "niah_single_2": ("numbers", 1, 1, 1),
    "niah_single_3": ("uuids", 1, 1, 1),
    "niah_multikey_1": ("numbers", 4, 1, 1),
    "niah_multikey_2": ("numbers", None, 1, 1),
    "niah_multikey_3": ("uuids", None, 1, 1),
    "niah_multivalue": ("numbers", 4, 1, 4),
    "niah_multiquery": ("numbers", 4, 4, 4),
}


@pytest.mark.parametrize("task", SHAPES)
def test_needles_are_those_asked_for(
    made: dict[str, list[RulerSample]], tokenizer: Any, essays: str, task: str
) -> None:
    kind, count, keys, outputs = SHAPES[task]
    for sample in made[task]:
        parts = sample.parts
        hidden = NEEDLE.findall(parts.context)
        assert len(hidden) == count if count else len(hidden) > 10
        asked = [key for _, key, _ in hidden if key in parts.question]
        assert len(set(asked)) == keys
        assert {value for _, key, value in hidden if key in parts.question} == set(parts.outputs)
        assert len(parts.outputs) == outputs
        shape = UUID if kind == "uuids" else r"\d{7}"
        assert all(name == kind and re.fullmatch(shape, value) for name, _, value in hidden)
        assert all(key in parts.answer_prefix for key in asked)
        one = keys * outputs == 1
        assert parts.question.startswith(f"Which {kind[:-1] if one else kind} does")
        assert parts.answer_prefix.endswith("is" if one else "are")
        if task == "niah_multikey_3":
            assert all(re.fullmatch(UUID, key) for _, key, _ in hidden)


def test_haystacks(made: dict[str, list[RulerSample]], essays: str) -> None:
    assert "Clouds drift over the hill." in made["niah_single_1"][0].parts.context
    essay = made["niah_single_2"][0].parts.context
    bare = NEEDLE.sub("", essay.split("\n", 1)[1])
    assert " ".join(bare.split())[:400] == essays[:400]


def test_variables_follow_one_chain_of_four_hops(made: dict[str, list[RulerSample]]) -> None:
    for sample in made["vt"]:
        value = re.search(r"hold the value (\d{5}),", sample.parts.question)
        assert value is not None
        example, text = sample.parts.context.split("\n\nHere and there")
        steps = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text)
        chain = [value.group(1)]
        assert len(steps) == 5
        for name, source in steps:  # in the order of the text
            assert source == chain[-1]
            chain.append(name)
        assert tuple(chain[1:]) == sample.parts.outputs
        assert all(re.fullmatch("[A-Z]{5}", name) for name in sample.parts.outputs)
        solved = re.findall(r"VAR (\w+) =", example)
        assert example.endswith("namely: " + " ".join(solved))


@pytest.mark.parametrize(("length", "often", "seldom"), [(LENGTH, 6, 1), (5500, 30, 3)])
def test_common_words_are_the_most_common(
    tokenizer: Any, essays: str, length: int, often: int, seldom: int
) -> None:
    (sample,) = make_samples(Asker(tokenizer), essays, length=length, tasks=["cwe"], samples=1, seed=0)
    text = sample.parts.context.rsplit("keep in mind which ones they are.\n", 1)[1]
    counts = Counter(re.split(r"\s*\d+\. ", text.strip())[1:])
    top = {word for word, _ in counts.most_common(10)}
    assert top == set(sample.parts.outputs)
    assert Counter(counts.values()) == {often: 10, seldom: len(counts) - 10}
    assert sample.parts.context.count("Which 10 words does the list repeat most") == 1


def test_frequent_words_follow_zipf(made: dict[str, list[RulerSample]]) -> None:
    for sample in made["fwe"]:
        counts = Counter(sample.parts.context.split("lead the count: ")[1].split()).most_common()
        assert counts[0][0] == "..."
        assert tuple(word for word, _ in counts[1:4]) == sample.parts.outputs
        assert counts[3][1] > counts[4][1]
        for rank in (2, 3, 4):
            assert counts[rank - 1][1] == pytest.approx(counts[0][1] / rank**2, abs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["niah"]}, "niah_single_1"),
        ({"tasks": []}, "niah_single_1"),
        ({"samples": 0}, "1 or more"),
        ({"length": 150}, "smallest sample"),
        ({"length": 60_000}, "too few"),
    ],
)
def test_refused(tokenizer: Any, essays: str, settings: dict[str, Any], message: str) -> None:
    given = {"length": LENGTH, "tasks": ["niah_single_2"], "samples": 1, "seed": 0} | settings
    with pytest.raises(InputError, match=message):
        make_samples(Asker(tokenizer), essays, **given)
