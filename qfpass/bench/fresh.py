"""Measurements that need a process of their own: what is loaded or compiled before would blur them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ..errors import QFPassError

RESULT = "qfpass-bench-result: "


def in_fresh_process(
    module: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What `qfpass.bench.<module>` reports of `arguments`, plain values, in a new process.

    Raises:
        QFPassError: the process failed; its last words are in the message.
    """
    command = [sys.executable, "-m", f"qfpass.bench.{module}", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not results:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-20:])
        raise QFPassError(f"the process that measures {module} failed ({done.returncode}):\n{words}")
    return json.loads(results[-1].removeprefix(RESULT))


def arguments() -> dict[str, Any]:
    """In the new process: what it was asked."""
    return json.loads(sys.argv[1])


def answer(result: Mapping[str, Any]) -> None:
    """In the new process: what came of it."""
    print(RESULT + json.dumps(result), flush=True)
