"""A tiny model with a tokenizer of characters and a chat template, and a server of it on a free port."""

import functools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from string import ascii_letters, digits, punctuation
from typing import Any

import httpx
import openai
import uvicorn
from bounded import compiled, run_plainly
from tiny import FAMILIES
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qfpass.serving import Scheduler
from qfpass.serving.server.app import Served, build_app
from qfpass.serving.server.metrics import Metrics

NAME, SLOTS, CONTEXT = "tiny", 32, 256
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool.function.name }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('no role is called ' ~ message.role) }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def chat_tokenizer() -> Any:
    """One token a character, and ChatML's two."""
    specials = ["<|im_start|>", "<|im_end|>", "<unk>"]
    words = [*specials, *"\n ", *ascii_letters, *digits, *punctuation]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(word, special=True) for word in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", unk_token="<unk>", chat_template=TEMPLATE
    )


@functools.cache
def chat_model() -> Any:
    """32 slots, a context of 256 tokens, chunks of 16."""
    model = FAMILIES["llama"](vocab=len(chat_tokenizer()))
    return run_plainly(compiled(model, budget=SLOTS, chunk=16, context_length=CONTEXT))


class Server:
    """A running server and clients of it."""

    def __init__(self, scheduler: Scheduler, running: uvicorn.Server, address: str) -> None:
        self.scheduler, self.running, self.address = scheduler, running, address

    def client(self, **settings: Any) -> openai.OpenAI:
        """OpenAI's client, which doesn't try again."""
        chosen = {"api_key": "none", "max_retries": 0, "timeout": 60, **settings}
        return openai.OpenAI(base_url=f"{self.address}/v1", **chosen)

    def http(self, **settings: Any) -> httpx.Client:
        """A client that sends anything."""
        return httpx.Client(base_url=self.address, timeout=60, **settings)

    def wait_until_idle(self) -> None:
        """Return once no row works; fails after half a minute."""
        end = time.monotonic() + 30
        while self.scheduler.rows_in_use or self.scheduler.waiting:
            assert time.monotonic() < end
            time.sleep(0.002)


@contextmanager
def serving(served: Served | None = None, **settings: Any) -> Iterator[Server]:
    """A context with a server; `settings` are the scheduler's."""
    metrics = Metrics(SLOTS)
    scheduler = Scheduler(chat_model(), observer=metrics, **settings)
    app = build_app(scheduler, chat_tokenizer(), served or Served(NAME, most_bytes=20_000), metrics)
    listening = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.002)
        yield Server(scheduler, running, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        running.should_exit = True
        thread.join(60)
        scheduler.close(drain=False)
        assert not thread.is_alive()
