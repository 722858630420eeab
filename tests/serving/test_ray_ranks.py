"""A replica by Ray Serve of two ranks, which hold a model split by heads; one of them is killed."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

pytest.importorskip("ray", reason="Ray isn't installed: pip install '.[ray]'")

import ray
import torch.distributed as dist
from bounded import compiled, run_plainly
from ray import serve
from served import alone
from served_chat import CONTEXT, NAME, SLOTS, chat_tokenizer
from tiny import FAMILIES
from transformers import AutoModelForCausalLM
from two_processes import needs_gloo

from qfpass.serving import Sampling
from qfpass.serving.conversation import read_chat
from qfpass.serving.ray import replicated
from qfpass.serving.server.app import Served

RANKS, TURNS, KILLED_BEFORE = 2, 4, 2
SETTINGS: dict[str, Any] = {"budget": SLOTS, "chunk": 16, "context_length": CONTEXT, "score": "recency"}
# Special tokens have no text, and would be missing where an answer comes back as an earlier turn.
PLAIN = dict.fromkeys(chat_tokenizer().convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<unk>"]), -100.0)
pytestmark = [pytest.mark.slow, needs_gloo]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server whose ranks write their processes' numbers into `tmp_path`."""
    FAMILIES["llama"](vocab=len(chat_tokenizer())).save_pretrained(tmp_path / "model")

    def load() -> tuple[Any, Any, Served]:
        (tmp_path / f"pid_{dist.get_rank()}").write_text(str(os.getpid()))
        split = AutoModelForCausalLM.from_pretrained(tmp_path / "model", tp_plan="auto").eval()
        split.generation_config.eos_token_id = None
        return run_plainly(compiled(split, **SETTINGS)), chat_tokenizer(), Served(NAME)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    here = Path(__file__).parents[1]
    found = os.pathsep.join([str(here), str(here.parent), *sys.path])
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": found}})
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        options = {"ray_actor_options": {"num_cpus": 0.5}, "health_check_period_s": 1}
        serve.run(replicated(load, folder=tmp_path / "sessions", rows=2, ranks=RANKS, **options))
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_a_conversation_with_two_ranks_one_of_which_is_killed(address: str, tmp_path: Path) -> None:
    """Its answers are those of one process. When a rank goes, the replica ends, and another goes on."""
    client = openai.OpenAI(
        base_url=address, api_key="none", max_retries=0, timeout=60, default_headers={"x-session-id": "anna"}
    )
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    model = run_plainly(compiled(whole, **SETTINGS))
    session, bias = model.session(), {str(token): value for token, value in PLAIN.items()}
    messages, pids = [{"role": "user", "content": "What is kept, and for whom?"}], list[set[str]]()
    for turn in range(TURNS):
        said: dict[str, Any] = {"model": NAME, "messages": messages, "logit_bias": bias}
        if turn == KILLED_BEFORE:
            stream = client.chat.completions.create(**said, max_tokens=90, stream=True)
            assert [next(stream) for _ in range(4)]
            os.kill(int((tmp_path / "pid_1").read_text()), signal.SIGKILL)
            with pytest.raises((openai.APIError, httpx.HTTPError)):
                list(stream)
            done = _when_another_replica_is_there(client, max_tokens=20, **said)
        else:
            done = client.chat.completions.create(**said, max_tokens=20)
        pids.append({(tmp_path / f"pid_{rank}").read_text() for rank in range(RANKS)})
        prompt = read_chat(chat_tokenizer(), messages)
        written = alone(model, prompt.ids, 20, Sampling(logit_bias=PLAIN), session, prompt.marks or ())
        text = done.choices[0].message.content
        assert text == chat_tokenizer().decode(written)
        assert (done.usage.prompt_tokens_details.cached_tokens > 0) == (turn > 0)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"And {turn}?"}]
    before, after = pids[KILLED_BEFORE - 1], pids[KILLED_BEFORE]
    assert len(before) == len(after) == RANKS and not before & after and pids[0] == before


def _when_another_replica_is_there(client: openai.OpenAI, **said: Any) -> Any:
    """The answer of the replica that Ray starts: until it is there, requests fail."""
    for _ in range(60):
        try:
            return client.chat.completions.create(**said)
        except (openai.APIError, httpx.HTTPError):
            time.sleep(1)
    return client.chat.completions.create(**said)
