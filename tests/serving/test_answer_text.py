"""Text comes piece by piece as soon as it is certain, and ends before a stop string."""

from hypothesis import given
from hypothesis import strategies as st
from served_chat import chat_tokenizer

from qfpass.serving.answer_text import AnswerText


class Bytes:
    """A tokenizer of bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def pieces(text: AnswerText, ids: list[int]) -> list[str]:
    found = []
    for token in ids:
        found.append(text.add(token))
        if text.is_stopped:
            break
    return [*found, text.finish()]


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_the_pieces_are_the_text_up_to_the_first_stop_string(text: str, stop: list[str]) -> None:
    text = text.replace("\ufffd", "")
    ends = [text.index(each) for each in stop if each in text]
    found = "".join(pieces(AnswerText(Bytes(), stop), list(text.encode())))
    if not ends:
        assert found == text
    else:  # the stop string that is whole first
        end = min(text.index(each) + len(each) for each in stop if each in text)
        assert found in {text[: text.index(each)] for each in stop if each in text[:end]}


def test_a_character_comes_once_it_is_whole() -> None:
    assert pieces(AnswerText(Bytes()), list("aé€".encode())) == ["a", "", "é", "", "", "€", ""]


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    assert pieces(AnswerText(Bytes()), [65, 0xE2]) == ["A", "", "\ufffd"]


def test_what_may_be_a_stop_string_is_held() -> None:
    assert pieces(AnswerText(Bytes(), ["stop"]), list(b"a stoat")) == ["a", " ", "", "", "", "stoa", "t", ""]
    assert pieces(AnswerText(Bytes(), ["stop"]), list(b"a stop")) == ["a", " ", "", "", "", "", ""]
    assert pieces(AnswerText(Bytes(), ["stop"]), list(b"sto")) == ["", "", "", "sto"]


def test_special_tokens_have_no_text() -> None:
    tokenizer = chat_tokenizer()
    ids = tokenizer("one<|im_end|>two", add_special_tokens=False).input_ids
    assert "".join(pieces(AnswerText(tokenizer), ids)) == "onetwo"
