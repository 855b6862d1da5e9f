"""Small files that are replaced as a whole: after a crash there is the old one or the new one, never a piece."""

import os
from pathlib import Path


def replace_file(path: Path, data: bytes, mode: int = 0o644, suffix: str = ".new") -> None:
    """Write, sync, rename, sync the folder. Blocks. Several processes that write one file need a suffix each."""
    new = path.with_name(path.name + suffix)
    new.unlink(missing_ok=True)
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(file, "wb", closefd=False) as out:
            out.write(data)
        os.fsync(file)
    finally:
        os.close(file)
    new.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Blocks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
