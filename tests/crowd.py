"""Visitors of a server: requests of many kinds, whose accepted answers are compared with the model's own."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import cache
from typing import Any

import httpx
from bad_bodies import GOOD, MALFORMED, sent
from served import alone
from served_chat import CONTEXT, chat_model, chat_tokenizer

JSON = {"content-type": "application/json"}
COMPLETIONS = "/v1/completions"
ANSWER, TOLD = 12, 8  # tokens of the longest answer to a prompt, and of a first turn
# None of these begins with another one, so that each is read as it is alone.
PROMPTS = [f"{n} {'abcdefgh'[: n % 8]}{'x' * (7 * n % 60)}" for n in range(24)]
SECRETS = [f"The word of number {n} is {'heron' * (1 + n % 4)}." for n in range(24)]
QUESTION = " Which word is it?"


class BrokenOffError(Exception):
    """A client doesn't send the rest of its request."""


def text_of(ids: list[int]) -> str:
    return str(chat_tokenizer().decode(ids, skip_special_tokens=True))


def ids_of(text: str) -> list[int]:
    return list(chat_tokenizer()(text).input_ids)


@cache
def answer_to(prompt: str) -> list[int]:
    """The longest answer to a prompt; a shorter one is its beginning."""
    return alone(chat_model(), ids_of(prompt), ANSWER)


@cache
def second_turn(secret: str) -> list[int]:
    """The ids of a conversation's second turn: what was told, the answer to it, and a question."""
    return [*ids_of(secret), *alone(chat_model(), ids_of(secret), TOLD), *ids_of(QUESTION)]


@cache
def second_answer(secret: str, cached: int) -> str:
    """What the second turn is answered by a model that has read so many of its tokens before.

    Those of the first answer were read one by one. What has been evicted depends on such cuts.
    """
    cuts = range(len(ids_of(secret)), cached + 1)
    return text_of(alone(chat_model(), second_turn(secret), ANSWER, cuts=cuts))


class Visitors:
    """Requests of many kinds at once.

    Attributes:
        visits: what is done, by kind.
        statuses: of all answers.
        kinds: how many visits of each kind came to their end.
        remembered: how many second turns went on where the first had ended, and how many were read anew.
    """

    def __init__(self, seed: int) -> None:
        self.random, self.told = random.Random(seed), list[str]()
        self.statuses, self.kinds, self.remembered = Counter[int](), Counter[str](), Counter[bool]()
        self.visits: dict[str, Callable[[httpx.AsyncClient], Any]] = {
            "good": self.ask, "stream": self.read_stream, "slow": self.read_slowly, "leaves": self.leave,
            "hangs up": self.hang_up, "breaks off": self.break_off, "malformed": self.send_malformed,
            "mutated": self.send_mutated, "large": self.send_large, "too long": self.send_too_long,
            "tells": self.tell, "spies": self.spy,
        }  # fmt: skip

    async def visit(self, client: httpx.AsyncClient) -> None:
        kind = self.random.choice([*self.visits, "good", "tells", "tells"])
        await self.visits[kind](client)
        self.kinds[kind] += 1

    def body(self, **more: Any) -> tuple[dict[str, Any], str]:
        """A good request, and the text that answers it."""
        prompt, tokens = self.random.choice(PROMPTS), self.random.randint(1, ANSWER)
        return {**GOOD, "prompt": prompt, "max_tokens": tokens, **more}, text_of(answer_to(prompt)[:tokens])

    async def send(
        self, client: httpx.AsyncClient, content: Any, path: str = COMPLETIONS, name: str = ""
    ) -> httpx.Response:
        answer = await client.post(path, content=sent(content), headers={**JSON, "x-session-id": name})
        self.statuses[answer.status_code] += 1
        assert answer.status_code < 500, (content, answer.text)
        return answer

    async def ask(self, client: httpx.AsyncClient) -> None:
        body, wanted = self.body()
        answer = await self.send(client, body)
        assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == wanted

    async def read_stream(self, client: httpx.AsyncClient, slowly: bool = False) -> None:
        body, wanted = self.body(stream=True)
        text = ""
        async for piece in self.pieces(client, body):
            text += piece
            await asyncio.sleep(0.05 if slowly else 0)
        assert text == wanted

    async def read_slowly(self, client: httpx.AsyncClient) -> None:
        await self.read_stream(client, slowly=True)

    async def leave(self, client: httpx.AsyncClient) -> None:
        """Close the connection after the first piece of a stream."""
        body, _ = self.body(stream=True, max_tokens=200)
        async with aclosing(self.pieces(client, body)) as pieces:
            assert text_of(answer_to(body["prompt"])).startswith(await anext(pieces))

    async def hang_up(self, client: httpx.AsyncClient) -> None:
        """Close the connection while the answer is awaited."""
        body, _ = self.body(max_tokens=200)
        waiting = asyncio.ensure_future(client.post(COMPLETIONS, json=body))
        await asyncio.sleep(self.random.random() * 0.02)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    async def break_off(self, client: httpx.AsyncClient) -> None:
        """Close the connection in the middle of the body."""

        async def half() -> AsyncIterator[bytes]:
            yield sent(self.body()[0])[:20]
            raise BrokenOffError

        try:
            await client.post(COMPLETIONS, content=half(), headers=JSON)
        except BrokenOffError:
            return
        raise AssertionError("half a body was answered")

    async def send_malformed(self, client: httpx.AsyncClient) -> None:
        path, content = self.random.choice(MALFORMED)
        assert (await self.send(client, content, path)).status_code == 400

    async def send_mutated(self, client: httpx.AsyncClient) -> None:
        content = bytearray(sent(self.body()[0]))
        for _ in range(3):
            content[self.random.randrange(len(content))] = self.random.randrange(256)
        await self.send(client, bytes(content))

    async def send_large(self, client: httpx.AsyncClient) -> None:
        assert (await self.send(client, {**GOOD, "prompt": "x" * 25_000})).status_code == 413

    async def send_too_long(self, client: httpx.AsyncClient) -> None:
        """More than a row has room for: a longer prompt is refused, a longer answer ends at the context."""
        answer = await self.send(client, {**GOOD, "prompt": [5] * self.random.randint(CONTEXT + 1, 4000)})
        assert answer.status_code == 400 and f"the context {CONTEXT}" in answer.text
        ids = [self.random.randrange(3, 60) for _ in range(CONTEXT - 2)]
        answer = await self.send(client, {**GOOD, "prompt": ids, "max_tokens": 4000})
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 3
        assert answer.json()["choices"][0]["text"] == text_of(alone(chat_model(), ids, 3))

    async def tell(self, client: httpx.AsyncClient) -> None:
        """Two turns of a conversation that has a name; in between, others push it to disk and away."""
        secret = self.random.choice(SECRETS)
        prompt = ids_of(secret)
        answer = await self.send(client, {**GOOD, "prompt": prompt, "max_tokens": TOLD}, name=secret)
        wanted = second_turn(secret)[len(prompt) : len(prompt) + TOLD]
        assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == text_of(wanted)
        self.told.append(secret)
        await asyncio.sleep(self.random.random() * 0.2)
        cached = await self.ask_again(client, secret, name=secret)
        assert cached in (0, len(prompt), len(prompt) + TOLD - 1)
        self.remembered[cached > 0] += 1

    async def spy(self, client: httpx.AsyncClient) -> None:
        """Ask what another conversation was told: nothing that it has read may be used."""
        if self.told:
            assert await self.ask_again(client, self.random.choice(self.told), name="") == 0

    async def ask_again(self, client: httpx.AsyncClient, secret: str, name: str) -> int:
        """A second turn; how many of its tokens had been read before."""
        body = {**GOOD, "prompt": second_turn(secret), "max_tokens": ANSWER}
        answer = await self.send(client, body, name=name)
        assert answer.status_code == 200, answer.text
        cached = int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert answer.json()["choices"][0]["text"] == second_answer(secret, cached)
        return cached

    async def pieces(self, client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncGenerator[str]:
        """The pieces of a stream's text."""
        async with client.stream("POST", COMPLETIONS, json=body) as answer:
            self.statuses[answer.status_code] += 1
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])["choices"][0]["text"]
