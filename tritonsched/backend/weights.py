"""Which files a model is made of, as one number. Rule: bounded reading, however large the weights.

Names, sizes and contents count, modification times do not (a fresh checkout is the same model). Of
a file over WHOLE_BYTES_MAX only both ends are read: tools that write weights change them
throughout. Left out: hidden files, and what Python keeps beside its sources.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

WHOLE_BYTES_MAX = 8 * 1024 * 1024
END_BYTES = 1024 * 1024
FILES_MAX = 1000  # of one model


def files_sha256(directory: Path) -> str | None:
    """Of a model's directory in a repository, in hexadecimal; None if it cannot be read, or has no
    files or more than FILES_MAX.
    """
    if not directory.is_dir():
        return None
    try:
        files = sorted(path for path in directory.rglob("*") if _counts(path, directory))
        if not 0 < len(files) <= FILES_MAX:
            return None
        total = hashlib.sha256()
        for path in files:
            total.update(f"{path.relative_to(directory).as_posix()}\0".encode())
            total.update(_file_digest(path))
    except OSError:
        return None
    return total.hexdigest()


def hashes(repository: Path | None, models: Iterable[str]) -> Mapping[str, str]:
    """By model, of those whose files can be read. repository: None: nobody knows where it is."""
    if repository is None:
        return {}
    found = {name: files_sha256(repository / name) for name in models if _is_plain(name)}
    return {name: digest for name, digest in found.items() if digest is not None}


def _is_plain(name: str) -> bool:
    """A directory's name and no way out of the repository."""
    return bool(name) and Path(name).name == name and name != ".."


def _counts(path: Path, directory: Path) -> bool:
    parts = path.relative_to(directory).parts
    hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
    return not hidden and path.is_file()


def _file_digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\0".encode())
    with path.open("rb") as file:
        if size <= WHOLE_BYTES_MAX:
            digest.update(file.read(WHOLE_BYTES_MAX))
        else:
            digest.update(file.read(END_BYTES))
            file.seek(-END_BYTES, 2)
            digest.update(file.read(END_BYTES))
    return digest.digest()
