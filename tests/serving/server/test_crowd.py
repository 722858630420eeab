"""A crowd of good and bad requests: never a 500, and each accepted answer is that of the request alone.

A few hundred requests; `make fuzz-server` runs 10,000.
"""

import asyncio
import gc
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from bad_bodies import GOOD, MALFORMED, sent
from served import alone
from served_chat import Server, chat_model, chat_tokenizer, serving

ROWS = 3
REQUESTS = int(os.environ.get("QFPASS_REQUESTS", "200"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(rows=ROWS, queue=200) as running:
        yield running


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
