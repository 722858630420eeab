"""The body of /v1/responses, whose requests hold the whole conversation: nothing is kept by an id."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ...errors import InputError
from .bodies import MOST_MESSAGES, MOST_TOOLS, GenerationBody, as_text
from .shapes import ResponseShape, Shape

TEXTS = ("input_text", "output_text", "text")  # the kinds of parts that hold text
REPEATED = ("instructions", "max_output_tokens", "temperature", "top_p", "metadata", "tools", "tool_choice")


class ResponseBody(GenerationBody):
    """The body of /v1/responses."""

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    )
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[Literal["format"], dict[Literal["type"], Literal["text"]]] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    previous_response_id: None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str], Field(max_length=16)] | None = None

    @property
    def most_tokens(self) -> int | None:
        """Tokens of the answer at most; None if the request doesn't say."""
        return self.max_output_tokens if self.max_output_tokens is not None else self.max_tokens

    @property
    def offered_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the chat template is given, in the form of a chat's."""
        if self.tools is None or self.tool_choice == "none":
            return None
        return [
            {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
            for tool in self.tools
        ]

    def texts(self) -> list[dict[str, Any]]:
        """The conversation as messages of a role and a string.

        Raises:
            InputError: an item of the input is no message, or holds something other than text.
        """
        given = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        return first + [_message(item, f"input[{number}]") for number, item in enumerate(given)]

    def shape(self, model: str) -> Shape:
        """The shape of the answer."""
        asked = self.model_dump(include=set(REPEATED))
        asked |= {"tools": self.tools or [], "tool_choice": self.tool_choice or "auto"}
        return ResponseShape(model, {**asked, "parallel_tool_calls": bool(self.parallel_tool_calls)})


def _message(item: dict[str, Any], where: str) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind != "message":
        raise InputError(f"{where} is of the type {str(kind)[:100]!r}, but only messages are read.")
    message = as_text(item, where, TEXTS)
    return {"role": message["role"], "content": message["content"]}
