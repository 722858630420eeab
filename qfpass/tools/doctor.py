"""`qfpass doctor`: versions, compiler, devices, folders, and what is fast here and what isn't."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer
from packaging.version import Version
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import MachineError, QFPassError
from ..filters import cache_folder
from ..machine import place_compiled_code, require_writable
from ..pipeline import compile
from ..reporting import OptimisationReport, report
from ..upstream import inductor_cache
from ..upstream.cpp_compiler import cpp_compiler
from ..upstream.vector_isa import has_vectors
from ..upstream.versions import TESTED
from ..waits import Wait

GOOD, SLOW, BROKEN = "ok", "slow", "broken"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: "ok", "slow" where something works but isn't fast, or "broken" where compiling fails.
        told: what was found, and what to do where it isn't ok.
    """

    subject: str
    state: str
    told: str


def examine(trial: bool = True) -> Iterator[Finding]:
    """Look at this machine; `trial` compiles a tiny model and says which optimisations it used."""
    place_compiled_code()
    yield from _versions()
    yield _compiler()
    yield from _devices()
    yield from _folders()
    if trial:
        yield from _optimisations()


def _versions() -> Iterator[Finding]:
    yield Finding("Python", GOOD, platform.python_version())
    yield Finding("qfpass", GOOD, version("qfpass"))
    for name, tested in TESTED.items():
        found = version(name)
        known = Version(tested[0]).release <= Version(found).release <= Version(tested[-1]).release
        doubt = f": tested from {tested[0]} to {tested[-1]}; run with QFPASS_OFF=all if results look wrong"
        yield Finding(name, GOOD if known else SLOW, found + ("" if known else doubt))


def _compiler() -> Finding:
    found = cpp_compiler()
    if found is None:
        return Finding("C++ compiler", BROKEN, "none: install g++ or clang++, or name one by CXX")
    return Finding("C++ compiler", GOOD, found or "not asked: this version of torch doesn't tell")


def _devices() -> Iterator[Finding]:
    told = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if has_vectors():
        yield Finding("processor", GOOD, f"{told}, vector instructions")
    else:
        yield Finding("processor", SLOW, f"{told}, no vector instructions that Inductor knows: no own loops")
    if not torch.cuda.is_available():
        yield Finding("GPU", GOOD, "none that torch sees")
        return
    for index in range(torch.cuda.device_count()):
        yield Finding(f"GPU {index}", GOOD, torch.cuda.get_device_name(index))
    if find_spec("flash_attn") is None:
        told = "not installed: torch's own attention runs; pip install 'qfpass[flash]' for flash-attn's"
        yield Finding("flash-attn", GOOD, told)


def _folders() -> Iterator[Finding]:
    own, compiled = cache_folder(), inductor_cache.cache_folder()
    yield _folder("filters", own, "QFPASS_CACHE")
    if compiled is None:
        yield Finding("compiled code", SLOW, "not kept: Inductor's caches are off")
    else:
        yield _folder("compiled code", compiled, "QFPASS_CACHE or TORCHINDUCTOR_CACHE_DIR")


def _folder(subject: str, folder: Path, variables: str) -> Finding:
    try:
        require_writable(folder)
    except MachineError as error:
        return Finding(subject, BROKEN, str(error))
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    sizes = f"{held / 2**20:,.0f} MiB held, {free / 2**30:,.1f} GiB free"
    return Finding(subject, GOOD, f"{folder}: {sizes}; {variables} moves it")


def _optimisations() -> Iterator[Finding]:
    try:
        with Wait("compiling a tiny model", "a minute or so the first time; --no-trial needs none"):
            found = try_tiny_model()
    except Exception as error:  # whatever Inductor raises is what the user wants to know
        yield Finding("a tiny model", BROKEN, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return
    for each in found:
        state = GOOD if each.state in ("on", "off by choice") and not each.reason else SLOW
        yield Finding(each.name, state, f"{each.state}: {each.reason}" if each.reason else each.state)


def try_tiny_model(backend: str = "inductor") -> tuple[OptimisationReport, ...]:
    """Compile a tiny decoder, let it read and write, and return which optimisations it used."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=64, max_position_embeddings=128,
    )  # fmt: skip
    compiled = compile(LlamaForCausalLM(config).eval(), budget=16, score="recency", backend=backend)
    session = compiled.session()
    for tokens in (40, 1, 1, 1):
        compiled(torch.zeros(1, tokens, dtype=torch.long), past_key_values=session)
    return report(compiled).optimisations


def run_doctor(
    trial: Annotated[bool, typer.Option(help="Compile a tiny model, to see what is used.")] = True,
) -> None:
    """Look at versions, compiler, devices and folders; say what is fast here, what isn't and why."""
    table, broken = Table("", "", "", show_header=False), []
    for finding in examine(trial):
        table.add_row(finding.subject, finding.state, escape(finding.told))
        if finding.state == BROKEN:
            broken.append(finding.subject)
    Console().print(table)
    if broken:
        raise QFPassError(f"compiling doesn't work here: see {', '.join(broken)} above.")
