"""A repository of the Hugging Face Hub as a folder: its list of files, and the small ones when they are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from gateway.bundles.json_file import LONGEST
from gateway.errors import BundleError, quote
from gateway.pull.download import Downloader, Remote


class RepositoryEntry(Traversable):
    """A file or a folder.

    Args:
        at: its path; "": all files.
        files: path -> what to download.
        get: downloads one, and returns the file.
    """

    def __init__(self, title: str, at: str, files: Mapping[str, Remote], get: Callable[[str], Path]) -> None:
        self._title, self._at, self._files, self._get = title, at, files, get

    @property
    def name(self) -> str:
        return self._at.rpartition("/")[2] or self._title

    @property
    def size(self) -> int:
        """Bytes of a file."""
        return self._files[self._at].size

    def is_file(self) -> bool:
        return self._at in self._files

    def is_dir(self) -> bool:
        return not self.is_file() and any(path.startswith(self._prefix) for path in self._files)

    def iterdir(self) -> Iterator[RepositoryEntry]:
        start = len(self._prefix)
        names = {path[start:].partition("/")[0] for path in self._files if path.startswith(self._prefix)}
        return iter([self.joinpath(name) for name in sorted(names)])

    def joinpath(self, *names: Any) -> RepositoryEntry:
        at = "/".join(filter(None, [self._at, *map(str, names)]))
        return RepositoryEntry(self._title, at, self._files, self._get)

    def __truediv__(self, name: Any) -> RepositoryEntry:
        return self.joinpath(name)

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> IO[Any]:
        """Raises FileNotFoundError, or BundleError if the download fails."""
        if not self.is_file():
            raise FileNotFoundError(2, "There is no file", self._at)
        return self._get(self._at).open(mode, *args, **kwargs)

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return bytes(file.read())

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    @property
    def _prefix(self) -> str:
        return f"{self._at}/" if self._at else ""


@contextmanager
def opened_repository(title: str, files: Mapping[str, Remote]) -> Iterator[RepositoryEntry]:
    """The files as one folder, called `title`. What was downloaded is removed at the end."""
    downloader = Downloader()
    with TemporaryDirectory(prefix="npu-gateway-") as temporary:
        names = {path: Path(temporary) / str(number) for number, path in enumerate(files)}

        def get(path: str) -> Path:
            if files[path].size > LONGEST:  # no file that is read here is as long
                raise BundleError(f"{title}: {quote(path)} has more than {LONGEST >> 20} MiB.")
            downloader.fetch(files[path], names[path], lambda stage, done, total: None)
            return names[path]

        try:
            yield RepositoryEntry(title, "", files, get)
        finally:
            downloader.close()
