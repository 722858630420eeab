"""Every recipe of docs/recipes runs, on a tiny random model and without a compiler; its commands parse."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import recipes
import torch
import typer.main
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from vision_processors import save_with_processor

from qfpass.tools.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(recipes.PAGES.glob("*.md"))
OTHERS = [
    ROOT / "README.md",
    ROOT / "docs" / "start.md",
    ROOT / "docs" / "taking_back.md",
]  # whose blocks run too
IN_MINUTES = "% takes minutes"
BOOK = " ".join(f"the-mill-of-number-{i:05}-stands-at-a-river" for i in range(300))  # 12,000 characters
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_tiny(folder: Path, kv_heads: int = 1, layers: int = 1) -> None:
    """A random model, with a tokenizer that has a token for each word of the book, and a chat template."""
    vocabulary = {word: i for i, word in enumerate(["<end>", "<unknown>", "yes", "no", *BOOK.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=CHAT)
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=kv_heads,
        vocab_size=len(vocabulary), max_position_embeddings=512, initializer_range=0.2, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).eval().save_pretrained(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    save_tiny(folder / "tiny")
    save_with_processor(folder / "tiny-vlm")
    (folder / "book.txt").write_text(BOOK)
    return folder


@pytest.fixture
def in_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tiny)
    monkeypatch.setenv("QFPASS_CACHE", str(tiny / "cache"))
    return tiny


def instead(folder: Path) -> dict[str, str]:
    """What docs/recipes/index.md says is put in the place of what."""
    return {
        recipes.MODEL: str(folder / "tiny"),
        recipes.VLM: str(folder / "tiny-vlm"),
        "qfpass.compile(model,": 'qfpass.compile(model, backend="eager",',
        "agent_model.model.eval(),": 'agent_model.model.eval(), backend="eager",',
        "check(model, tokenizer,": 'check(model, tokenizer, backend="eager",',
        'options={"ratio": 8}': 'options={"ratio": 8, "backend": "eager"}',
        ', score="recency", backend="eager")': ', score="recency")',
    }


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.stem)
def test_a_recipe_runs(page: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if IN_MINUTES in page.read_text():
        pytest.skip("run by `make recipes`")
    if package := recipes.needed(page):
        pytest.importorskip(package)
    monkeypatch.setattr(recipes, "run_commands", parse_commands)
    recipes.run_page(page, instead(in_folder))


def parse_commands(text: str) -> str:
    """Parse each line of a block of commands as the command line does; nothing runs."""
    group = typer.main.get_command(app)
    for line in text.splitlines():
        program, *arguments = shlex.split(line.rpartition("| ")[2])
        assert program == "qfpass"
        command: Any = group
        while hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        command.make_context(command.name, arguments)
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_recipe_fits_a_screen(page: Path) -> None:
    if page.stem != "index":
        assert len(page.read_text().splitlines()) <= 90


def test_every_recipe_is_listed() -> None:
    listed = (recipes.PAGES / "index.md").read_text()
    assert [page.stem for page in PAGES if page.stem != "index" and f"]({page.stem}.md)" not in listed] == []


def test_what_a_block_printed_is_put_behind_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n```python\nprint(1)\n```\n\n```text\nold\n```\n\nand\n\n```python\nx = 2\n```\n\nend\n"
    )
    for _ in range(2):  # a second run changes nothing
        recipes.write_printed(page, recipes.run_page(page, {"print(1)": "print(1, 2)"}))
        assert page.read_text() == (
            "# A\n\n```python\nprint(1)\n```\n\n```text\n1 2\n```\n\nand\n\n```python\nx = 2\n```\n\nend\n"
        )


def test_commands_run_with_this_interpreter() -> None:
    own = f"{shlex.quote(sys.executable)} -m qfpass"
    assert recipes.command_of("qfpass serve M") == f"{own} serve M"
    assert recipes.command_of('echo "qfpass?" | qfpass chat M') == f'echo "qfpass?" | {own} chat M'


def test_a_server_that_ends_before_it_is_ready_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "is_ready", lambda: False)
    with pytest.raises(RuntimeError, match="false ended with 1"), recipes.running("false"):
        pass
