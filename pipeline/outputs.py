"""Files that are either whole or not there: temporary names, sync, rename, digests.

In: what a unit writes under temporary names. Out: its files in place, with {path: {bytes, digest}} for its record. The
names of the files are noted before the first of them is renamed, so that a unit killed between two renames can be
taken back (`take_back`).
"""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import xxhash


def digest_file(path: Path) -> str:
    """The xxh3 128-bit digest of a file's bytes, as hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON under a temporary name, syncs and renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """Reads a JSON file that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


class Outputs:
    """The files of one unit, from temporary names to their places below `root`."""

    def __init__(self, root: Path, temporary: Path) -> None:
        self.root = root
        self.temporary = temporary
        self._files: dict[str, Path] = {}
        self._adopted: list[str] = []
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def path(self, relative: str) -> Path:
        """The temporary path that becomes `root/relative` when the unit is done; the work must write it."""
        assert relative not in self._files, relative
        self._files[relative] = self.temporary / f"{len(self._files):04d}"
        return self._files[relative]

    def adopt(self, relative: str) -> None:
        """Takes a file in that the work itself put in place safely."""
        assert (self.root / relative).is_file(), relative
        self._adopted.append(relative)

    def commit(self, pending: Path) -> dict[str, dict[str, Any]]:
        """Syncs and renames all files that were written; `pending` names them from before the first rename.

        A file that the work was offered and did not write is not an output.
        """
        written = {name: path for name, path in self._files.items() if path.exists()}
        outputs = {name: {"bytes": path.stat().st_size, "digest": digest_file(path)} for name, path in written.items()}
        for name in self._adopted:
            path = self.root / name
            outputs[name] = {"bytes": path.stat().st_size, "digest": digest_file(path)}
        for path in written.values():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_json(pending, sorted(written))
        folders = set()
        for name, path in written.items():
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            folders.add(target.parent)
        for folder in folders:
            sync_folder(folder)
        return outputs

    def close(self) -> None:
        """Removes what is left under temporary names."""
        shutil.rmtree(self.temporary, ignore_errors=True)


def take_back(root: Path, pending: Path) -> None:
    """Removes the files of a unit that was killed between its first rename and its record."""
    for name in read_json(pending):
        (root / name).unlink(missing_ok=True)
    pending.unlink()
