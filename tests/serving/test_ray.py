"""Two replicas by Ray Serve: one is killed in the middle of an answer; the conversation goes on elsewhere."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

pytest.importorskip("ray", reason="Ray isn't installed: pip install '.[ray]'")

import ray
from ray import serve
from served import alone
from served_chat import NAME, chat_model, chat_tokenizer

from qfpass.serving import Sampling
from qfpass.serving.conversation import read_chat
from qfpass.serving.ray import replicated
from qfpass.serving.server.app import Served

with socket.create_server(("127.0.0.1", 0)) as free:
    PORT = free.getsockname()[1]
# Special tokens have no text, and would be missing where an answer comes back as an earlier turn.
PLAIN = dict.fromkeys(chat_tokenizer().convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<unk>"]), -100.0)


class Telling:
    """A tokenizer that tells which process uses it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._tokenizer = folder, chat_tokenizer()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **settings: Any) -> Any:
        (self._folder / "pid").write_text(str(os.getpid()))
        return self._tokenizer(text, **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where sessions are kept, and where two replicas tell their processes."""

    def load() -> tuple[Any, Any, Served]:
        return chat_model(), Telling(tmp_path), Served(NAME)

    here = Path(__file__).parents[1]
    found = os.pathsep.join([str(here), str(here.parent), *sys.path])
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": found}})
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        options = {"ray_actor_options": {"num_cpus": 0.1}}
        serve.run(replicated(load, folder=tmp_path / "sessions", rows=2, replicas=2, **options))
        yield tmp_path
    finally:
        serve.shutdown()
        ray.shutdown()


def test_a_conversation_goes_on_when_its_replica_is_killed(folder: Path) -> None:
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none", max_retries=0, timeout=120,
        default_headers={"x-session-id": "anna"},
    )  # fmt: skip
    messages, pids = [{"role": "user", "content": "What is kept, and for whom?"}], list[str]()
    session, bias = chat_model().session(), {str(token): value for token, value in PLAIN.items()}
    for turn in range(3):
        prompt, said = read_chat(chat_tokenizer(), messages), {"model": NAME, "messages": messages}
        if turn == 2:
            stream = client.chat.completions.create(**said, max_tokens=90, logit_bias=bias, stream=True)
            assert [next(stream) for _ in range(4)] and (folder / "pid").read_text() == pids[0]
            os.kill(int(pids[0]), signal.SIGKILL)
            with pytest.raises((openai.APIError, httpx.HTTPError)):
                list(stream)
        done = client.chat.completions.create(**said, max_tokens=20, logit_bias=bias)
        pids.append((folder / "pid").read_text())
        cuts = prompt.marks or ()
        written = alone(chat_model(), prompt.ids, 20, Sampling(logit_bias=PLAIN), session, cuts)
        text = done.choices[0].message.content
        assert text == chat_tokenizer().decode(written)
        assert (done.usage.prompt_tokens_details.cached_tokens > 0) == (turn > 0)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"And {turn}?"}]
    assert pids[0] == pids[1] != pids[2]
