"""A server of one compiled model, until it is told to end."""

from pathlib import Path
from typing import Any

import uvicorn

from ...model.compiled_decoder import decoder_of
from ..scheduler import Scheduler
from .app import Served, build_app
from .metrics import Metrics

MOST_CONNECTIONS = 1024


def run_server(
    model: Any, tokenizer: Any, served: Served, *, host: str, port: int, rows: int, memory: int, disk: int,
    folder: Path | None, queue: int,
) -> None:  # fmt: skip
    """Serve a compiled model; on SIGINT or SIGTERM running answers end first, a second signal ends at once.

    Raises:
        ConfigError: the settings can't work; see `Scheduler`.
    """
    metrics = Metrics(decoder_of(model).sizes.slots)
    scheduler = Scheduler(
        model, rows=rows, memory=memory, disk=disk, folder=folder, queue=queue, observer=metrics, warm_up=True
    )
    app = build_app(scheduler, tokenizer, served, metrics)
    try:
        uvicorn.run(
            app, host=host, port=port, log_level="info", access_log=False, limit_concurrency=MOST_CONNECTIONS
        )
    finally:
        scheduler.close(drain=False)
