"""Files that are written whole or not at all, also where the disk is full."""

import os
from pathlib import Path

from pipeline.errors import ConfigError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or leave what is there; ConfigError where it cannot be written."""
    fresh = path.with_name(f".maskcast-{os.getpid()}.new")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); make room or name another folder") from error
    finally:
        fresh.unlink(missing_ok=True)
