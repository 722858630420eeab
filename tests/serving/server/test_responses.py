"""/v1/responses by OpenAI's own client: the same answers as a chat's, in shapes that it can read."""

from collections.abc import Iterator

import openai
import pytest
from served_chat import NAME, Server, serving

SYSTEM, QUESTION = "Be brief.", "What is a slot?"
MESSAGES = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(rows=2) as running:
        yield running


def answered(server: Server, messages: list[dict[str, str]] = MESSAGES) -> str:
    done = server.client().chat.completions.create(model=NAME, messages=messages, max_tokens=20)
    return done.choices[0].message.content


def test_a_response_is_the_answer_of_a_chat(server: Server) -> None:
    done = server.client().responses.create(
        model=NAME, input=QUESTION, instructions=SYSTEM, max_output_tokens=20, metadata={"of": "a test"}
    )
    assert done.output_text == answered(server)
    assert done.status == "incomplete" and done.incomplete_details.reason == "max_output_tokens"
    assert done.usage.output_tokens == 20 and done.usage.total_tokens == done.usage.input_tokens + 20
    assert done.instructions == SYSTEM and done.metadata == {"of": "a test"} and done.model == NAME


def test_a_stream_of_a_response_tells_each_step(server: Server) -> None:
    events = list(
        server.client().responses.create(
            model=NAME, input=QUESTION, instructions=SYSTEM, max_output_tokens=20, stream=True
        )
    )
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.incomplete",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"} and len(kinds) > 14
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events[4:-4])
    assert text == answered(server) == events[-4].text == events[-1].response.output_text


def test_a_next_turn_costs_its_new_tokens(server: Server) -> None:
    client, conversation = server.client(), [{"role": "user", "content": "Tell me of the mill."}]
    first = client.responses.create(model=NAME, input=conversation, max_output_tokens=10)
    conversation += [item.model_dump() for item in first.output]  # as OpenAI's guide does it
    conversation += [{"role": "user", "content": [{"type": "input_text", "text": "And the river?"}]}]
    second = client.responses.create(model=NAME, input=conversation, max_output_tokens=10)
    assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens // 2
    plain = [
        {"role": "user", "content": "Tell me of the mill."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And the river?"},
    ]
    assert answered(server, plain).startswith(second.output_text)


def test_what_a_response_cannot_be_asked_is_refused_by_name(server: Server) -> None:
    create = server.client().responses.create
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        create(model=NAME, input=QUESTION, previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="'function_call', but only messages are read"):
        create(model=NAME, input=[{"type": "function_call", "call_id": "1", "name": "f", "arguments": ""}])
    image = {"type": "input_image", "image_url": "file:///etc/passwd"}
    with pytest.raises(openai.BadRequestError, match="text, which is all that is read"):
        create(model=NAME, input=[{"role": "user", "content": [image]}])
    with pytest.raises(openai.BadRequestError, match="store"):
        create(model=NAME, input=QUESTION, store=True)
