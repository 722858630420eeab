"""The bodies of requests: what they may say, and the settings of a scheduler that they ask for.

A field that isn't understood is refused by name; a few that change nothing here are taken and not read.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...errors import InputError
from ..sampling import Sampling
from .shapes import ChatShape, CompletionShape, Shape

MOST_MESSAGES, MOST_TOOLS, MOST_STOPS, MOST_BIASES = 4096, 128, 4, 1024

Stop = Annotated[str, Field(min_length=1, max_length=256)]


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GenerationBody(BaseModel):
    """What both kinds of requests may say."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Literal[1] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Annotated[dict[int, float], Field(max_length=MOST_BIASES)] | None = None
    seed: int | None = None
    # Not read: they change nothing here.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stop_strings(self) -> list[str]:
        """The strings before which the answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_usage(self) -> bool:
        """Whether a stream tells its tokens at its end."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the answer at most; None if the request doesn't say."""
        return self.max_tokens

    def sampling(self, default: Sampling) -> Sampling:
        """How tokens are chosen: as the request says, else by the model's default.

        Raises:
            InputError: a number is out of its range.
        """
        names = Sampling.__dataclass_fields__.keys()
        said = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return Sampling(**{**vars(default), **said})


class CompletionBody(GenerationBody):
    """The body of /v1/completions."""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    )
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None
    suffix: None = None

    def shape(self, model: str) -> Shape:
        """The shape of the answer."""
        return CompletionShape(model, self.wants_usage)


class ChatBody(GenerationBody):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    logprobs: Literal[False] | None = None
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str], Field(max_length=16)] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the answer at most; None if the request doesn't say."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def texts(self) -> list[dict[str, Any]]:
        """The messages with their contents as strings.

        Raises:
            InputError: a message has no role, or a content that isn't text.
        """
        return [as_text(message, f"messages[{number}]") for number, message in enumerate(self.messages)]

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the chat template is given."""
        return None if self.tool_choice == "none" else self.tools

    def shape(self, model: str) -> Shape:
        """The shape of the answer."""
        return ChatShape(model, self.wants_usage)


def as_text(message: dict[str, Any], where: str, kinds: Sequence[str] = ("text",)) -> dict[str, Any]:
    """A message with its content as a string; parts of it may be of these kinds.

    Raises:
        InputError: it has no role, or a content that isn't text; `where` says which message it is.
    """
    if not isinstance(message.get("role"), str):
        raise InputError(f"{where} has no role: give system, user, assistant or tool.")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return {**message, "content": content or ""}
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        is_text = isinstance(part, dict) and part.get("type") in kinds and isinstance(part.get("text"), str)
        if not is_text:
            raise InputError(f"{where}.content holds something other than text, which is all that is read.")
    return {**message, "content": "".join(part["text"] for part in parts)}
