"""`qfpass serve` of an exported folder, in a new process: it answers and never calls a compiler."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from served_chat import chat_tokenizer
from tiny import FAMILIES

import qfpass

pytestmark = pytest.mark.slow
ROWS, PROMPT = 2, "Once upon a time"


@pytest.fixture(scope="module")
def model() -> Any:
    return FAMILIES["llama"](vocab=len(chat_tokenizer()))


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, and its tokenizer and its model beside it."""
    made = tmp_path_factory.mktemp("served")
    compiled = qfpass.compile(model, budget=32, context_length=128, chunk=16, score="recency", verify=False)
    compiled.export(made / "exported", rows=ROWS)
    chat_tokenizer().save_pretrained(made / "words")
    return made


@contextmanager
def serving(served: Path, words: Path, scratch: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server with empty caches, whose compiler only leaves a note that it was called."""
    compiler = scratch / "compiler"
    compiler.write_text(f"#!/bin/sh\necho called >> {scratch / 'note'}\nexit 1\n")
    compiler.chmod(0o700)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = ["--tokenizer", str(words), "--rows", str(ROWS), "--name", "tiny", "--port", str(port)]
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"), "QFPASS_CACHE": str(scratch / "qfpass")}
    environment = {**os.environ, **caches, "CXX": str(compiler), "PATH": ""}
    command = [sys.executable, "-m", "qfpass", "serve", str(served), *settings, "--dtype", "float32"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait_for(process: subprocess.Popen[bytes], url: str) -> bool:
    """Whether a server comes up, and not to its end."""
    while process.poll() is None:
        try:
            return httpx.get(f"{url}/health").is_success
        except httpx.TransportError:
            time.sleep(0.1)
    return False


def test_an_export_is_served_without_a_compiler(model: Any, folder: Path, tmp_path: Path) -> None:
    ids = chat_tokenizer()(PROMPT, return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    with serving(folder / "exported", folder / "words", tmp_path) as (process, url):
        assert wait_for(process, url), process.stderr and process.stderr.read().decode()
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        answers = [httpx.post(f"{url}/v1/completions", json=body, timeout=60).json() for _ in range(2)]
    for answer in answers:
        assert answer["choices"][0]["text"] == chat_tokenizer().decode(written, skip_special_tokens=True)
    assert not (tmp_path / "note").exists() and not list(tmp_path.rglob("inductor/**/*.so"))


def test_the_compiler_would_be_noticed(model: Any, folder: Path, tmp_path: Path) -> None:
    """The model itself, which isn't exported, needs one."""
    model.save_pretrained(tmp_path / "model")
    with serving(tmp_path / "model", folder / "words", tmp_path) as (process, url):
        assert not wait_for(process, url)
    assert (tmp_path / "note").exists()
