"""Messages become ids by the template; marks are where a later request may go on."""

from typing import Any

import pytest
from served_chat import chat_tokenizer

from qfpass.errors import InputError
from qfpass.serving.conversation import read_chat, read_prompt

SYSTEM = {"role": "system", "content": "Rules."}
USER = {"role": "user", "content": "Hi."}


def chat(messages: list[dict[str, Any]], tokenizer: Any = None) -> Any:
    return read_chat(tokenizer or chat_tokenizer(), messages)


def test_marks_are_the_ends_of_the_system_prompt_and_of_the_turns() -> None:
    read = chat([SYSTEM, USER])
    text = chat_tokenizer().decode(read.ids)
    assert (
        text
        == "<|im_start|>system\nRules.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    )
    ends = [chat_tokenizer().decode(read.ids[:n]) for n in read.marks]
    assert ends == [text[: text.index("<|im_start|>user")], text[: text.index("<|im_start|>assistant")]]
    assert read.shared == read.marks[0]
    assert chat([USER]).shared == 0 and len(chat([USER]).marks) == 1


def test_a_template_that_wants_a_user_has_no_shared_beginning() -> None:
    class Strict:
        chat_template = "x"

        def apply_chat_template(self, messages: Any, **settings: Any) -> str:
            if not any(message["role"] == "user" for message in messages):
                raise ValueError("a user, please")
            return chat_tokenizer().apply_chat_template(messages, **settings)

        def __call__(self, text: str, **settings: Any) -> Any:
            return chat_tokenizer()(text, **settings)

    read = chat([SYSTEM, USER], Strict())
    assert read.shared == 0 and len(read.marks) == 1
    with pytest.raises(InputError, match="chat template refuses these messages: a user, please"):
        chat([SYSTEM], Strict())


def test_a_template_that_rewrites_the_end_has_no_mark() -> None:
    class Rewriting:
        chat_template = "x"

        def apply_chat_template(self, messages: Any, add_generation_prompt: bool, **settings: Any) -> str:
            return "generate: x" if add_generation_prompt else "earlier: x"

        def __call__(self, text: str, **settings: Any) -> Any:
            return chat_tokenizer()(text, **settings)

    assert chat([USER], Rewriting()).marks is None


def test_without_a_template_there_are_no_chats() -> None:
    class Without:
        chat_template = None

    with pytest.raises(InputError, match="no chat template: use /v1/completions"):
        chat([USER], Without())


def test_a_prompt_is_ids_or_becomes_ids() -> None:
    assert read_prompt(chat_tokenizer(), [3, 4]).ids == [3, 4]
    assert chat_tokenizer().decode(read_prompt(chat_tokenizer(), "hello").ids) == "hello"
