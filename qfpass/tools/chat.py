"""`qfpass chat`: a conversation in the terminal, which may go on past the model's context."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console

from ..errors import QFPassError
from ..serving import Answer, Sampling, Scheduler
from ..serving.answer_text import AnswerText
from ..serving.conversation import read_chat
from ..serving.model_defaults import default_sampling, stop_tokens
from .compiled_model import load_compiled, options_given
from .options import Device, Dtype, ModelName

_HELP = "Ctrl-C ends an answer, Ctrl-D or /exit the chat; /new begins another."


def run_chat(
    context: typer.Context,
    model: ModelName,
    ratio: Annotated[float, typer.Option(help="How many times fewer bytes of keys and values.")] = 8.0,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Else the model's own.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 1024,
    overflow: Annotated[str, typer.Option(help="Past the context: rerotate, continue, error.")] = "rerotate",
    tokenizer: Annotated[str | None, typer.Option(help="A folder or a hub name; else the model's.")] = None,
    dtype: Dtype = "bfloat16", device: Device = "cpu",
) -> None:  # fmt: skip
    """Chat with a model in the terminal; each turn reads its new tokens alone."""
    compiled, words = load_compiled(
        model, tokenizer, dtype=dtype, device=device, ratio=ratio, overflow=overflow,
        given=options_given(context),
    )  # fmt: skip
    sampling = replace(default_sampling(compiled), seed=seed)
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    console = Console(highlight=False)
    with Scheduler(compiled, rows=1, warm_up=True) as scheduler:
        chat = Chat(scheduler, words, stop_tokens(compiled, words), sampling, max_new_tokens, system, console)
        console.print(f"[dim]{_HELP}[/]")
        chat.run(lambda: console.input("[bold]> [/]"))


class Chat:
    """A conversation: what was said, and how its next turn is answered.

    Attributes:
        messages: all turns so far.
    """

    def __init__(
        self, scheduler: Scheduler, tokenizer: Any, stop: frozenset[int], sampling: Sampling,
        max_new_tokens: int, system: str | None, console: Console,
    ) -> None:  # fmt: skip
        self._scheduler, self._tokenizer, self._stop = scheduler, tokenizer, stop
        self._sampling, self._most, self._console = sampling, max_new_tokens, console
        self._system = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._system)

    def run(self, read_line: Callable[[], str]) -> None:
        """Answer line after line, until `read_line` raises EOFError or gives /exit."""
        while True:
            try:
                line = read_line().strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line == "/exit":
                return
            if line == "/new":
                self.messages = list(self._system)
            elif line:
                self.answer(line)

    def answer(self, said: str) -> None:
        """Print the answer to what the user said, and what it took; a refused turn is taken back."""
        self.messages.append({"role": "user", "content": said})
        try:
            prompt = read_chat(self._tokenizer, self.messages)
            answer = self._scheduler.submit(
                prompt.ids, self._sampling, max_new_tokens=self._most, stop=self._stop, shared=prompt.shared,
                marks=prompt.marks,
            )  # fmt: skip
            text = self._print(answer)
        except QFPassError as error:
            self.messages.pop()
            self._console.print(f"[bold red]qfpass:[/] {error}")
            return
        self.messages.append({"role": "assistant", "content": text})
        self._console.print(f"[dim]{self.status(answer)}[/]")

    def status(self, answer: Answer) -> str:
        """Memory, tokens seen and tokens that needn't be read again, after an answer."""
        seen = answer.prompt_tokens + len(answer.tokens)
        mebibytes = self._scheduler.nbytes / 2**20
        return f"{mebibytes:.1f} MiB of keys and values · {seen} tokens seen · {answer.cached_tokens} cached"

    def _print(self, answer: Answer) -> str:
        text, pieces = AnswerText(self._tokenizer), list[str]()

        def say(piece: str) -> None:
            pieces.append(piece)
            self._console.out(piece, end="", highlight=False)

        try:
            for token in answer:
                say(text.add(token))
        except KeyboardInterrupt:
            answer.cancel()
            answer.result()
        say(text.finish())
        self._console.out()
        return "".join(pieces)
