"""Run the recipes of docs/recipes on real weights, and write what they print into their pages.

`python examples/recipes.py` runs all of them, `python examples/recipes.py chat batch` two. A page's Python
blocks run one after the other in one namespace, in a folder that holds `book.txt`; its commands run in a
shell. A block `sh server` starts a server, which runs until the page's end and is asked by blocks
`python client`. The `text` block behind a block is what it printed.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

from assets import essays_text, weights_folder
from markdown_it import MarkdownIt

PAGES = Path(__file__).resolve().parents[1] / "docs" / "recipes"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # as the pages name it
VLM = "HuggingFaceTB/SmolVLM-256M-Instruct"  # the same
NO_WEIGHTS = "% no weights at hand"  # stands in a page that runs on a tiny model alone
PYTHON, COMMANDS, PRINTED = "python", "sh", "text"  # what the fences of blocks say
SERVER, CLIENT = "sh server", "python client"  # the same; tests don't run them
WIDTH = 110  # of a printed line on a page
HEALTH = "http://127.0.0.1:8000/health"  # where a server says that it is ready


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: what its fence says, its text, and its first and last line, from 0."""

    kind: str
    text: str
    first: int
    last: int


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    tokens = MarkdownIt().parse(page.read_text())
    return [Block(t.info, t.content, t.map[0], t.map[1]) for t in tokens if t.type == "fence" and t.map]


def needed(page: Path) -> str | None:
    """The package that a page's line `% needs PACKAGE` names."""
    found = re.search(r"^% needs (\S+)$", page.read_text(), re.MULTILINE)
    return found[1] if found else None


def run_python(page: Path, block: Block, text: str, namespace: dict[str, object]) -> str:
    """Run a block, as `text` has it; returns what it printed. Errors name the page's lines."""
    printed = io.StringIO()
    code = compile("\n" * (block.first + 1) + text, str(page), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def command_of(line: str) -> str:
    """A line for a shell that runs `qfpass` with this interpreter."""
    return re.sub(r"(^|\| )qfpass ", rf"\1{shlex.quote(sys.executable)} -m qfpass ", line)


def run_commands(text: str) -> str:
    """Run each line of a block as a command; returns what they printed."""
    done = [
        subprocess.run(command_of(line), shell=True, check=True, stdout=subprocess.PIPE, text=True)
        for line in text.splitlines()
    ]
    return "".join(each.stdout for each in done)


@contextlib.contextmanager
def running(command: str) -> Iterator[None]:
    """A server, from when it is ready on.

    Raises:
        RuntimeError: the server ended before it was ready.
    """
    with subprocess.Popen(f"exec {command_of(command.strip())}", shell=True) as server:
        try:
            while not is_ready():
                if server.poll() is not None:
                    raise RuntimeError(f"{command.strip()} ended with {server.returncode}")
                time.sleep(1)
            yield
        finally:
            server.terminate()


def is_ready() -> bool:
    """Whether a server answers."""
    try:
        with urlopen(HEALTH):
            return True
    except OSError:
        return False


def run_page(
    page: Path, instead: Mapping[str, str], given: Mapping[str, object] | None = None, serve: bool = False
) -> dict[int, str]:
    """Run a page's blocks, with texts in the place of others; returns what each printed, by last line.

    `given` holds the names that the page takes for granted. Servers and clients run only with `serve`.
    """
    printed, namespace = dict[int, str](), dict[str, object]({"__name__": page.stem, **(given or {})})
    with contextlib.ExitStack() as servers:
        for block in blocks_of(page):
            text = block.text
            for old, new in instead.items():
                text = text.replace(old, new)
            if block.kind == SERVER and serve:
                servers.enter_context(running(text))
            elif block.kind == PYTHON or (block.kind == CLIENT and serve):
                printed[block.last] = run_python(page, block, text, namespace)
            elif block.kind == COMMANDS:
                printed[block.last] = run_commands(text)
    return printed


def write_printed(page: Path, printed: Mapping[int, str]) -> None:
    """Put what blocks printed behind them, in the place of what stands there."""
    lines = page.read_text().splitlines()
    old = {b.first: b.last for b in blocks_of(page) if b.kind == PRINTED}
    for last, text in sorted(printed.items(), reverse=True):
        stop = old.get(last + 1, last)  # after the empty line between
        # Ray's processes print in colours, of themselves.
        own = [line.rstrip() for line in text.strip("\n").splitlines() if not line.startswith("\x1b[")]
        shown = [part for line in own for part in wrapped(line)]
        lines[last:stop] = ["", f"```{PRINTED}", *shown, "```"] if text.strip() else []
    page.write_text("\n".join(lines) + "\n")


def wrapped(line: str) -> list[str]:
    """A printed line as lines of the page's width."""
    return textwrap.wrap(line, WIDTH) if len(line) > WIDTH else [line]


def run_here(name: str) -> None:
    """Run one page in a new folder, and write what it printed."""
    page, start = PAGES / f"{name}.md", os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("book.txt").write_text(essays_text())
        try:
            printed = run_page(page, {MODEL: str(weights_folder())}, serve=True)
        finally:
            os.chdir(start)
    write_printed(page, {last: text.replace(str(weights_folder()), MODEL) for last, text in printed.items()})


def main() -> None:
    """Run each page in a process of its own, so that none has what another has left."""
    names = sys.argv[1:]
    if names[:1] == ["--here"]:
        return run_here(names[1])
    for name in names or sorted(page.stem for page in PAGES.glob("*.md") if page.stem != "index"):
        package = needed(PAGES / f"{name}.md")
        if NO_WEIGHTS in (PAGES / f"{name}.md").read_text():
            print(f"{name}: left out, its model's weights aren't fetched", flush=True)
            continue
        if package and find_spec(package) is None:
            print(f"{name}: left out, {package} isn't installed", flush=True)
            continue
        print(name, flush=True)
        subprocess.run([sys.executable, __file__, "--here", name], check=True)


if __name__ == "__main__":
    main()
