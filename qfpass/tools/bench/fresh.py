"""Runs measurements in a process of their own, where nothing is loaded or compiled yet."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from ...errors import QFPassError

RESULT = "qfpass-bench-result: "


def in_fresh_process(
    module: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The result of `qfpass.tools.bench.<module>` for `arguments`, which JSON can hold, in a new process.

    Raises:
        QFPassError: the process failed; the message has the end of its output.
    """
    command = [sys.executable, "-m", f"qfpass.tools.bench.{module}", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    results = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not results:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-20:])
        raise QFPassError(f"the process that measures {module} failed ({done.returncode}):\n{words}")
    return json.loads(results[-1].removeprefix(RESULT))


def arguments() -> dict[str, Any]:
    """The arguments of `in_fresh_process`; to be called in the new process."""
    return json.loads(sys.argv[1])


def answer(result: Mapping[str, Any]) -> None:
    """Give `result` to `in_fresh_process`; to be called in the new process."""
    print(RESULT + json.dumps(result), flush=True)
