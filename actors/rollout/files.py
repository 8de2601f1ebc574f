"""Files that a crash may interrupt."""

from __future__ import annotations

import os
from pathlib import Path


def cut_tail(path: Path | str) -> int:
    """Drops what follows the last newline of a file (a line that a crash cut off). Returns the bytes dropped."""
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)
    return size - end


def write_atomically(path: Path, data: bytes) -> None:
    """Readers see the old file or the new one, never a part; on disk when this returns."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
