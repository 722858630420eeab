"""`sglang serve MODEL --model-type qfpass`: our server by sglang's command line, from sglang 0.5.23 on.

sglang finds `backend` by the entry point `sglang.serve_backends`. Its own server isn't started.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..packages.manifest import FILE

API_VERSION = 1
# sglang's names of what `qfpass serve` takes by other names; "" for the model. Any other option must be ours.
_OURS = {
    "--model-path": "", "--model": "", "--tokenizer-path": "--tokenizer", "--served-model-name": "--name",
    "--api-key": "--token", "--max-running-requests": "--rows", "--max-queued-requests": "--queue",
    "-h": "--help",
}  # fmt: skip


def backend() -> Any:
    """The `ServeBackend` that sglang asks for."""
    from sglang.cli.serve_backends import ServeBackend

    return ServeBackend(api_version=API_VERSION, run=run, detect=detect)


def run(request: Any) -> None:
    """Run `qfpass serve` with the arguments of a `ServeRequest` until the server ends.

    Raises:
        ConfigError: the extra `serve` isn't installed.
    """
    if find_spec("typer") is None:
        raise ConfigError("serving needs typer: pip install 'qfpass[serve]'.")
    from .cli import run as run_command

    run_command(["serve", *own_arguments(request.argv)])


def detect(request: Any) -> Any:
    """Whether a request's model is a folder that `model.export` wrote; other models want `--model-type`."""
    from sglang.cli.serve_backends import ServeBackendDetection

    is_export = request.model_path is not None and (Path(request.model_path) / FILE).is_file()
    return ServeBackendDetection.MATCH if is_export else ServeBackendDetection.NO_MATCH


def own_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """sglang's arguments in the words of `qfpass serve`, which refuses by name what it doesn't know."""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option not in _OURS:
            yield argument
        elif ours := _OURS[option]:
            yield f"{ours}{equals}{value}"
        elif equals:
            yield value
