"""What compiling needs of the machine, asked before anything is traced: a compiler and a folder."""

import os
import shutil
import tempfile
from pathlib import Path

from .errors import MachineError
from .filters.local_cache import VARIABLE, cache_folder
from .switches import Switches
from .upstream import inductor_cache
from .upstream.cpp_compiler import cpp_compiler

ROOM = 64 * 2**20  # bytes: less than that, and compiled code doesn't fit


def require_machine(on_processor: bool, switches: Switches) -> None:
    """Raise MachineError where Inductor can't compile here; its code goes where QFPASS_CACHE says.

    What is asked through a private part of torch isn't asked where that part's switch is off.

    Raises:
        MachineError: no C++ compiler for a model on a processor, or a cache folder that can't be written.
    """
    place_compiled_code()
    if on_processor and switches.own_loops and cpp_compiler() is None:
        raise MachineError(
            "no C++ compiler was found: install one (apt install g++, or Xcode's command line tools), or "
            'name one by CXX. backend="eager" needs none and is slow.'
        )
    if switches.capture_cache and (folder := inductor_cache.cache_folder()) is not None:
        require_writable(folder)


def place_compiled_code() -> None:
    """Let Inductor keep its code in QFPASS_CACHE, where that is set and Inductor's own variable isn't."""
    if os.environ.get(VARIABLE):
        os.environ.setdefault(inductor_cache.VARIABLE, str(cache_folder() / "inductor"))


def require_writable(folder: Path) -> None:
    """Raise MachineError unless the folder can be written and has some room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise MachineError(
            f"compiled code can't be written into {folder} ({error.strerror or error}): set {VARIABLE} or "
            f"{inductor_cache.VARIABLE} to a folder that can be written."
        ) from error
    if (free := shutil.disk_usage(folder).free) < ROOM:
        raise MachineError(
            f"{folder} has {free / 2**20:.0f} MiB left, too few for compiled code: free some, or set "
            f"{VARIABLE} to a folder with more room."
        )
