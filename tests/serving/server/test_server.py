"""The server by OpenAI's own client: answers are those of the model alone."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from served import alone
from served_chat import NAME, Server, chat_model, chat_tokenizer, serving

from qfpass.serving import Sampling
from qfpass.serving.conversation import read_chat

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "What is a slot?"}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(rows=3) as running:
        yield running


def wanted(
    messages: list[dict[str, Any]], tokens: int, sampling: Sampling | None = None, tools: Any = None
) -> str:
    """The text that the model writes by itself."""
    prompt = read_chat(chat_tokenizer(), messages, tools)
    ids = alone(chat_model(), prompt.ids, tokens, sampling or Sampling(), cuts=prompt.marks or ())
    return chat_tokenizer().decode(ids, skip_special_tokens=True)


def test_a_chat_is_answered(server: Server) -> None:
    for settings in ({}, {"temperature": 0.9, "top_p": 0.8, "seed": 5}):
        done = server.client().chat.completions.create(
            model=NAME, messages=[SYSTEM, QUESTION], max_tokens=20, **settings
        )
        (choice,) = done.choices
        assert choice.message.content == wanted([SYSTEM, QUESTION], 20, Sampling(**settings))
        assert choice.finish_reason == "length" and choice.message.role == "assistant"
        assert done.usage.completion_tokens == 20 and done.model == NAME
        assert done.usage.total_tokens == done.usage.prompt_tokens + 20


def test_a_stream_is_the_same_answer_in_pieces(server: Server) -> None:
    events = list(
        server.client().chat.completions.create(
            model=NAME, messages=[SYSTEM, QUESTION], max_completion_tokens=20, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == wanted([SYSTEM, QUESTION], 20) and len(pieces) > 10
    assert events[-2].choices[0].finish_reason == "length"
    assert not events[-1].choices and events[-1].usage.completion_tokens == 20
    assert len({event.id for event in events}) == 1


def test_a_turn_costs_its_new_tokens(server: Server) -> None:
    client, messages, read = server.client(), [SYSTEM], 0
    for turn in range(3):
        messages.append({"role": "user", "content": f"And what is number {turn}?"})
        done = client.chat.completions.create(model=NAME, messages=messages, max_tokens=10)
        cached = done.usage.prompt_tokens_details.cached_tokens
        if turn:  # all but the answer's last token and what opens the next turns
            assert read - len("<assistant\n") <= cached < done.usage.prompt_tokens
        messages.append({"role": "assistant", "content": done.choices[0].message.content})
        read = done.usage.prompt_tokens
    text = server.http().get("/metrics").text
    assert "qfpass_cached_tokens_total" in text and "qfpass_rows 3.0" in text
    assert float(text.split("\nqfpass_cached_tokens_total ")[1].split()[0]) >= cached


def test_the_system_prompt_is_read_once_for_all_names(server: Server) -> None:
    system = {"role": "system", "content": "You are a kind librarian."}
    cached = []
    for name in ("anna", "bob"):
        done = server.client(default_headers={"x-session-id": name}).chat.completions.create(
            model=NAME, messages=[system, QUESTION], max_tokens=2
        )
        cached.append(done.usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, len("<system\nYou are a kind librarian.>\n")]


def test_a_named_conversation_is_its_own(server: Server) -> None:
    secret = [{"role": "user", "content": "The word is heron."}]
    cached = []
    for name in ("carla", "dora", "carla"):
        done = server.client(default_headers={"x-session-id": name}).chat.completions.create(
            model=NAME, messages=secret, max_tokens=3
        )
        cached.append(done.usage.prompt_tokens_details.cached_tokens)
        assert done.choices[0].message.content == wanted(secret, 3)
    assert cached[:2] == [0, 0] and cached[2] > 0


def test_tools_reach_the_template(server: Server) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    for choice, tools in (("auto", [tool]), ("none", None)):
        done = server.client().chat.completions.create(
            model=NAME, messages=[QUESTION], tools=[tool], tool_choice=choice, max_tokens=12
        )
        assert done.choices[0].message.content == wanted([QUESTION], 12, tools=tools)
    assert wanted([QUESTION], 12, tools=[tool]) != wanted([QUESTION], 12)


@pytest.mark.parametrize("prompt", ["Once upon a time", [5, 9, 40, 2, 7]])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_prompt_is_completed(server: Server, prompt: Any, streamed: bool) -> None:
    ids = chat_tokenizer()(prompt).input_ids if isinstance(prompt, str) else prompt
    text = chat_tokenizer().decode(alone(chat_model(), ids, 9), skip_special_tokens=True)
    done = server.client().completions.create(model=NAME, prompt=prompt, max_tokens=9, stream=streamed)
    assert ("".join(e.choices[0].text for e in done) if streamed else done.choices[0].text) == text


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_ends_before_a_stop_string(server: Server, streamed: bool) -> None:
    text = wanted([QUESTION], 30)
    stop = text[8:11]
    done = server.client().chat.completions.create(
        model=NAME, messages=[QUESTION], max_tokens=30, stop=["never this", stop], stream=streamed
    )
    if streamed:
        events = list(done)
        assert "".join(e.choices[0].delta.content or "" for e in events) == text[: text.index(stop)]
        assert events[-1].choices[0].finish_reason == "stop"
    else:
        assert done.choices[0].message.content == text[: text.index(stop)]
        assert done.choices[0].finish_reason == "stop"


def test_parts_of_text_are_one_text(server: Server) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a slot?"}]
    done = server.client().chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": parts}], max_tokens=5
    )
    assert done.choices[0].message.content == wanted([QUESTION], 5)


def test_only_the_one_model_is_there(server: Server) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == [NAME] == [client.models.retrieve(NAME).id]
    with pytest.raises(openai.NotFoundError, match="this server has the model 'tiny' alone"):
        client.chat.completions.create(model="../../etc", messages=[QUESTION])
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")


def test_what_isnt_served_is_refused_by_name(server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="response_format"):
        server.client().chat.completions.create(
            model=NAME, messages=[QUESTION], response_format={"type": "json_object"}
        )
    image = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    with pytest.raises(openai.BadRequestError, match="text, which is all that is read"):
        server.client().chat.completions.create(model=NAME, messages=[{"role": "user", "content": [image]}])


def test_a_text_beyond_the_context_is_refused(server: Server) -> None:
    long = [{"role": "user", "content": "word " * 80}]
    with pytest.raises(openai.BadRequestError, match=r"the prompt has .* tokens, and the context 256"):
        server.client().chat.completions.create(model=NAME, messages=long)


def test_a_full_queue_is_429_with_retry_after() -> None:
    with serving(rows=1, queue=0) as server:
        client = server.client()
        first = client.completions.create(model=NAME, prompt="a", max_tokens=200, stream=True)
        next(iter(first))
        with pytest.raises(openai.RateLimitError, match="requests wait already") as refused:
            client.completions.create(model=NAME, prompt="b")
        assert int(refused.value.response.headers["retry-after"]) >= 1
        first.close()


def test_closing_lets_a_running_answer_end() -> None:
    with serving(rows=1) as server:
        stream = server.client().completions.create(model=NAME, prompt="abc", max_tokens=120, stream=True)
        events = iter(stream)
        text = next(events).choices[0].text
        server.running.should_exit = True
        text += "".join(event.choices[0].text for event in events)
    ids = alone(chat_model(), chat_tokenizer()("abc").input_ids, 120)
    assert text == chat_tokenizer().decode(ids, skip_special_tokens=True)
