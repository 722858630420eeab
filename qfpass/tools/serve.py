"""`qfpass serve`: a compiled model behind OpenAI's API."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..serving.model_defaults import default_sampling, stop_tokens
from .compiled_model import bytes_of, load_compiled, options_given
from .options import Device, Dtype, ModelName

_NEEDS = ("prometheus_client", "pydantic", "starlette", "uvicorn")


def run_serve(
    context: typer.Context,
    model: ModelName,
    ratio: Annotated[float, typer.Option(help="How many times fewer bytes of keys and values.")] = 8.0,
    rows: Annotated[int, typer.Option(min=1, help="Requests answered at the same time.")] = 16,
    memory: Annotated[str, typer.Option(help="Bytes of keys and values at most.")] = "4GiB",
    disk: Annotated[str, typer.Option(help="Bytes of kept conversations on disk at most.")] = "16GiB",
    folder: Annotated[
        Path | None, typer.Option(help="Keep conversations here, so that they outlive the server.")
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait; more get a 429.")] = 64,
    deadline: Annotated[float | None, typer.Option(min=0.001, help="The most seconds of a request.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 4096,
    max_body: Annotated[str, typer.Option(help="The most bytes of a request's body.")] = "8MiB",
    name: Annotated[str | None, typer.Option(help="The model's name in requests; else MODEL.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="QFPASS_TOKEN", help="Requests must carry it.", show_envvar=True)
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="The most tokens of a conversation; else the model's own.")
    ] = None,
    overflow: Annotated[str, typer.Option(help="Past the context: error, continue, rerotate.")] = "error",
    tokenizer: Annotated[str | None, typer.Option(help="A folder or a hub name; else the model's.")] = None,
    dtype: Dtype = "bfloat16", device: Device = "cpu",
) -> None:  # fmt: skip
    """Serve a model by OpenAI's API: chats, completions, streams; see docs/serving.md.

    MODEL may be a folder that model.export wrote, with its own ratio, dtype and the like.
    """
    if missing := [needed for needed in _NEEDS if importlib.util.find_spec(needed) is None]:
        raise ConfigError(f"serving needs {', '.join(missing)}: pip install 'qfpass[serve]'.")
    from ..serving.server.app import Served
    from ..serving.server.run import run_server

    bounds = {"memory": bytes_of(memory), "disk": bytes_of(disk)}
    body = bytes_of(max_body)
    compiled, words = load_compiled(
        model, tokenizer, dtype=dtype, device=device, ratio=ratio, context_length=context_length,
        overflow=overflow, given=options_given(context),
    )  # fmt: skip
    served = Served(
        name or model, stop_tokens(compiled, words), default_sampling(compiled), token, body, max_new_tokens,
        deadline,
    )  # fmt: skip
    run_server(compiled, words, served, host=host, port=port, rows=rows, folder=folder, queue=queue, **bounds)
