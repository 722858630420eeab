"""`qfpass serve` from the command line: what it loads, bounds and refuses."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from served_chat import chat_tokenizer
from tiny import FAMILIES
from typer.testing import CliRunner

import qfpass
from qfpass.errors import ConfigError
from qfpass.tools import cli, compiled_model, serve


def command(*words: str) -> Any:
    """The result of a command of the command line."""
    return CliRunner().invoke(cli.app, words, catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    FAMILIES["llama"](vocab=len(chat_tokenizer())).save_pretrained(path)
    chat_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    made = partial(qfpass.compile, backend="eager", score="recency", store_dtype=None, verify=False)
    monkeypatch.setattr(compiled_model, "compile", made)


def test_a_model_is_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = dict[str, Any]()

    async def ask(app: Any) -> list[httpx.Response]:
        transport, head = httpx.ASGITransport(app), {"authorization": "Bearer heron"}
        async with httpx.AsyncClient(transport=transport, base_url="http://here", headers=head) as client:
            body = {"model": "mine", "prompt": "Hello", "max_tokens": 50}
            first = await client.post("/v1/completions", json=body)
            large = await client.post("/v1/completions", json={**body, "prompt": "x" * 3000})
            return [first, large, await client.get("/v1/models", headers={"authorization": "no"})]

    def run(app: Any, **settings: Any) -> None:
        seen.update(settings, answers=asyncio.run(ask(app)))

    monkeypatch.setattr(uvicorn, "run", run)
    settings = {
        "--name": "mine", "--token": "heron", "--rows": 2, "--memory": "1MiB", "--max-new-tokens": 3,
        "--max-body": "2KiB", "--dtype": "float32", "--port": 8123,
    }  # fmt: skip
    words = [str(word) for pair in settings.items() for word in pair]
    result = command("serve", str(folder), *words)
    assert result.exit_code == 0, result.output
    first, large, without_token = seen["answers"]
    assert first.json()["usage"]["completion_tokens"] <= 3 and first.json()["model"] == "mine"
    assert (first.status_code, large.status_code, without_token.status_code) == (200, 413, 401)
    assert (seen["host"], seen["port"]) == ("127.0.0.1", 8123)


def test_rows_that_memory_doesnt_hold_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"memory=20000 holds \d+ rows, not 16"):
        command(
            "serve", str(folder), "--memory", "20000", "--dtype", "float32", "--rows", "16", "--ratio", "2"
        )


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_NEEDS", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"no_such_package: pip install 'qfpass\[serve\]'"):
        command("serve", "any")
