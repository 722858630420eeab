"""Malformed, oversized and broken-off requests: told what is wrong, never a 500, and nobody else notices.

A few hundred requests; `make fuzz-server` runs 10,000.
"""

import asyncio
import gc
import json
import os
import random
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import alone
from served_chat import NAME, Server, chat_model, chat_tokenizer, serving

from qfpass.serving.server.app import Served

ROWS = 3
REQUESTS = int(os.environ.get("QFPASS_REQUESTS", "200"))
GOOD = {"model": NAME, "prompt": "abc", "max_tokens": 4}
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "abc"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(rows=ROWS, queue=200) as running:
        yield running


MALFORMED: list[tuple[str, Any]] = [
    ("/v1/completions", b""),
    ("/v1/completions", b"{"),
    ("/v1/completions", b"\xff\xfe"),
    ("/v1/completions", b"[" * 15_000),
    ("/v1/completions", b'{"model": "tiny", "prompt": "\\ud800"}'),
    ("/v1/completions", b'{"model": "tiny", "prompt": "a", "temperature": NaN}'),
    ("/v1/completions", b'{"model": "tiny", "prompt": "a", "temperature": 1e999}'),
    ("/v1/completions", b'{"model": "tiny", "prompt": "a", "seed": 1' + b"0" * 5000 + b"}"),
    ("/v1/completions", [1, 2]),
    ("/v1/completions", None),
    ("/v1/completions", {**GOOD, "prompt": ""}),
    ("/v1/completions", {**GOOD, "prompt": []}),
    ("/v1/completions", {**GOOD, "prompt": ["a", "b"]}),
    ("/v1/completions", {**GOOD, "prompt": [10**9]}),
    ("/v1/completions", {**GOOD, "prompt": [10**30]}),
    ("/v1/completions", {**GOOD, "prompt": [-1]}),
    ("/v1/completions", {**GOOD, "max_tokens": 0}),
    ("/v1/completions", {**GOOD, "max_tokens": "many"}),
    ("/v1/completions", {**GOOD, "n": 2}),
    ("/v1/completions", {**GOOD, "best_of": 3}),
    ("/v1/completions", {**GOOD, "logprobs": 3}),
    ("/v1/completions", {**GOOD, "temperature": -1}),
    ("/v1/completions", {**GOOD, "top_p": 7}),
    ("/v1/completions", {**GOOD, "top_k": 2**40}),
    ("/v1/completions", {**GOOD, "seed": 2**70}),
    ("/v1/completions", {**GOOD, "stop": ["a"] * 5}),
    ("/v1/completions", {**GOOD, "stop": [""]}),
    ("/v1/completions", {**GOOD, "stop": "a" * 300}),
    ("/v1/completions", {**GOOD, "logit_bias": {"x": 1}}),
    ("/v1/completions", {**GOOD, "logit_bias": {"9999": 1}}),
    ("/v1/completions", {**GOOD, "trust_remote_code": True}),
    ("/v1/completions", {**GOOD, "generation_config": "/etc/passwd"}),
    ("/v1/chat/completions", {**CHAT, "messages": []}),
    ("/v1/chat/completions", {**CHAT, "messages": ["hello"]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{}]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": 3, "content": "a"}]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "nobody", "content": "a"}]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": 3}]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": {"a": 1}}]}),
    ("/v1/chat/completions", {**CHAT, "tools": ["x"]}),
    ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function"}] * 200}),
    ("/v1/chat/completions", {**CHAT, "tool_choice": "required"}),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}),
    ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}),
    ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {"tokenize": True}}),
    ("/v1/chat/completions", {**CHAT, "chat_template": "{{ 1 }}"}),
]  # fmt: skip


def sent(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.mark.parametrize(("path", "body"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_request_is_told_what_is_wrong(server: Server, path: str, body: Any) -> None:
    with server.http() as client:
        answer = client.post(path, content=sent(body), headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and 5 < len(error["message"]) < 3000
    assert not server.scheduler.rows_in_use


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/completions", {"content-type": "text/plain"}, 415),
        ("POST", "/v1/completions", {}, 415),
        ("POST", "/v1/completions", {"content-type": "application/json", "x-session-id": "a" * 999}, 400),
        ("GET", "/v1/completions", {}, 405),
        ("POST", "/load_model", {"content-type": "application/json"}, 404),
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", "/v1/models/%2e%2e%2fetc", {}, 404),
    ],
)
def test_other_wrong_requests(
    server: Server, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    with server.http() as client:
        content = json.dumps(GOOD).encode() if method == "POST" else None
        answer = client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status and answer.json()["error"]["message"]


def test_a_large_body_is_refused_however_it_is_sent(server: Server) -> None:
    body = json.dumps({**GOOD, "prompt": "a" * 30_000}).encode()

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), 1000):
            yield body[at : at + 1000]

    with server.http() as client:
        for content in (body, pieces()):
            headers = {"content-type": "application/json"}
            answer = client.post("/v1/completions", content=content, headers=headers)
            assert answer.status_code == 413 and "20000 bytes" in answer.json()["error"]["message"]


def test_a_token_is_asked_for() -> None:
    with serving(Served(NAME, token="heron"), rows=1) as server, server.http() as client:
        assert client.get("/health").status_code == 200
        for given in (None, "heron", "Bearer egret", "Bearer h\u00e9ron".encode()):
            headers = {} if given is None else {"authorization": given}
            for path in ("/v1/models", "/metrics"):
                assert client.get(path, headers=headers).status_code == 401
        assert server.client(api_key="heron").models.list().data[0].id == NAME


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_cancels_its_answer(server: Server, streamed: bool) -> None:
    server.wait_until_idle()
    body = json.dumps({**GOOD, "max_tokens": 250, "stream": streamed}).encode()
    address = server.address.removeprefix("http://").split(":")
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with socket.create_connection((address[0], int(address[1]))) as connection:
        connection.sendall(head.encode() + body)
        while not server.scheduler.rows_in_use:
            pass
        if streamed:
            assert b"200 OK" in connection.recv(1000)
    server.wait_until_idle()
    assert 'qfpass_answers_total{reason="cancelled"}' in server.http().get("/metrics").text


class Visitors:
    """Requests of many kinds at once; each accepted answer is compared with the model's own."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.random = server, random.Random(seed)
        self.statuses, self.own = Counter[int](), dict[str, list[int]]()

    def wanted(self, prompt: str, tokens: int) -> str:
        if prompt not in self.own:
            self.own[prompt] = alone(chat_model(), chat_tokenizer()(prompt).input_ids, 12)
        return str(chat_tokenizer().decode(self.own[prompt][:tokens], skip_special_tokens=True))

    async def visit(self, client: httpx.AsyncClient) -> None:
        kind = self.random.choice(("good", "good", "stream", "leaves", "malformed", "mutated", "large"))
        headers = {"content-type": "application/json"}
        path, body = "/v1/completions", dict[str, Any](GOOD)
        body["prompt"] = self.random.choice(PROMPTS)
        body["max_tokens"] = tokens = self.random.randint(1, 12)
        if kind in ("good", "stream", "leaves"):
            body["stream"] = kind != "good"
            await self._good(client, kind, path, body, tokens)
            return
        if kind == "malformed":
            path, content = self.random.choice(MALFORMED)
        elif kind == "large":
            content = {**body, "prompt": "x" * 25_000}
        else:
            content = bytearray(sent(body))
            for _ in range(3):
                content[self.random.randrange(len(content))] = self.random.randrange(256)
            content = bytes(content)
        answer = await client.post(path, content=sent(content), headers=headers)
        self.statuses[answer.status_code] += 1
        assert answer.status_code < 500, (content, answer.text)

    async def _good(
        self, client: httpx.AsyncClient, kind: str, path: str, body: dict[str, Any], tokens: int
    ) -> None:
        if kind == "good":
            answer = await client.post(path, json=body)
            self.statuses[answer.status_code] += 1
            assert answer.status_code in (200, 429), answer.text
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["text"] == self.wanted(body["prompt"], tokens)
            return
        text = ""
        async with client.stream("POST", path, json=body) as answer:
            self.statuses[answer.status_code] += 1
            assert answer.status_code in (200, 429)
            async for line in answer.aiter_lines():
                if kind == "leaves" and text:
                    break
                if self.random.random() < 0.05:
                    await asyncio.sleep(0.01)  # a slow reader
                if line.startswith("data: {") and "choices" in line:
                    text += json.loads(line[6:])["choices"][0]["text"]
        if answer.status_code == 200:
            whole = self.wanted(body["prompt"], tokens)
            assert whole.startswith(text) and (kind == "leaves" or text == whole)


PROMPTS = [f"{n} {'abcdefgh'[: n % 8]}{'x' * (7 * n % 60)}" for n in range(24)]


def resident_bytes() -> int:
    """Memory of this process, the server's and the visitors'."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_crowd_of_good_and_bad_visitors(server: Server) -> None:
    """None of the prompts begins with another one, so that each is read as it is alone."""
    crowd, most, halves = Visitors(server, seed=0), 0, list[int]()

    async def visit(requests: int) -> None:
        gate = asyncio.Semaphore(12)
        async with httpx.AsyncClient(base_url=server.address, timeout=60) as client:

            async def one() -> None:
                nonlocal most
                async with gate:
                    await crowd.visit(client)
                    most = max(most, server.scheduler.nbytes)

            await asyncio.gather(*(one() for _ in range(requests)))

    for _ in range(2):
        asyncio.run(visit(REQUESTS // 2))
        server.wait_until_idle()
        halves.append(resident_bytes())
    assert crowd.statuses[200] > REQUESTS / 4 and crowd.statuses[400] and crowd.statuses[413]
    assert most <= 3 * ROWS * chat_model().pool(1).nbytes  # the pool, and two kept sessions for each row
    print(f"{dict(crowd.statuses)}, {halves} bytes after each half")
    if REQUESTS >= 5000:  # fewer don't fill the caches of Python and its packages
        assert halves[1] <= 1.01 * halves[0]
