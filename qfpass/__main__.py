"""The command `qfpass`, also as `python -m qfpass`."""

import sys
from importlib.metadata import version
from importlib.util import find_spec

from .waits import Wait


def main() -> None:
    """Print versions, or run the command line, which needs typer."""
    if sys.argv[1:] == ["--version"]:
        print(", ".join(f"{name} {version(name)}" for name in ("qfpass", "torch", "transformers")))
        return
    if find_spec("typer") is None:
        sys.exit("qfpass: the command line needs typer: pip install 'qfpass[evaluate]'")
    with Wait("loading the library", "seconds, more after an installation"):
        from .tools.cli import run

    run()


if __name__ == "__main__":
    main()
