"""Options that several commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer


def can_be_written(path: Path | None) -> Path | None:
    """What takes hours should not end with a file that cannot be written: so it is told before."""
    if path is not None:
        if path.is_dir():
            raise typer.BadParameter(f"{path} is a folder; name a file in it")
        if not path.parent.is_dir():
            raise typer.BadParameter(f"{path}: there is no folder {path.parent}; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise typer.BadParameter(f"{path} cannot be written; name another file")
    return path


JsonFile = Annotated[Path | None, typer.Option("--json", help="write the figures here too", callback=can_be_written)]
