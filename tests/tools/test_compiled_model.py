"""What the commands that serve a model load, and how bytes are written."""

from pathlib import Path

import pytest
from served_chat import chat_tokenizer
from tiny import FAMILIES
from typer.testing import CliRunner

from qfpass.errors import ConfigError
from qfpass.tools import cli
from qfpass.tools.compiled_model import bytes_of, load_compiled


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("4GiB", 2**32), ("1.5 MiB", 3 * 2**19), ("500MB", 5 * 10**8), ("1000", 1000), ("7kb", 7000)],
)
def test_bytes_are_read(text: str, wanted: int) -> None:
    assert bytes_of(text) == wanted


@pytest.mark.parametrize("text", ["", "GiB", "4 GiBs", "-1", "1.2.3", "four"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no number of bytes"):
        bytes_of(text)


def test_a_model_is_loaded_and_compiled(tmp_path: Path) -> None:
    FAMILIES["llama"](vocab=len(chat_tokenizer())).save_pretrained(tmp_path)
    chat_tokenizer().save_pretrained(tmp_path)
    settings = {"ratio": 8, "score": "recency", "backend": "eager", "store_dtype": None, "chunk": 8}
    model, words = load_compiled(str(tmp_path), None, dtype="float32", device="cpu", **settings)
    assert model.session().slots == 32 and words("ab").input_ids == chat_tokenizer()("ab").input_ids


def test_an_exported_decoder_needs_a_tokenizer_by_name(tmp_path: Path) -> None:
    (tmp_path / "qfpass.json").write_text("{}")
    with pytest.raises(ConfigError, match="name one by --tokenizer"):
        load_compiled(str(tmp_path), None, dtype="float32", device="cpu")


@pytest.mark.parametrize("command", ["serve", "chat"])
@pytest.mark.parametrize("option", ["--ratio 4", "--dtype float32", "--overflow continue"])
def test_an_exported_decoder_has_settled_its_options(command: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "qfpass.json").write_text("{}")
    arguments = [command, str(tmp_path), "--tokenizer", "any", *option.split()]
    name = option.split()[0].removeprefix("--")
    with pytest.raises(ConfigError, match=f"compiled with a {name} of its own: leave --{name} out"):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
