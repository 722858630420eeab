"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ..store.scores import SCORES

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A folder or a hub name.")]
Data = Annotated[Path, typer.Option(help="A text file, or a folder of .txt and .md files.")]
Score = Annotated[str, typer.Option(help=f"Which key goes first: {', '.join(SCORES)}.")]
Seed = Annotated[int, typer.Option(help="Seed of all random choices.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Progress = Annotated[bool, typer.Option(help="Say how far it is.")]
