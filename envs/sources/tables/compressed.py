"""JSON lines in compressed files: unpacked to an unnamed temporary file, and mapped from there."""

import gzip
import mmap
import shutil
import tempfile
from pathlib import Path
from typing import IO, cast

from mixgym.envs.sources.tables.records import JsonLines, fail


class CompressedLines(JsonLines):
    """An object per line of a ``.gz`` or ``.zst`` file; lines are those of the text inside."""

    def _content(self) -> bytes | mmap.mmap:
        with tempfile.TemporaryFile() as text:
            self._unpack(cast(IO[bytes], text))
            text.flush()
            if not text.tell():
                return b""
            return mmap.mmap(text.fileno(), 0, access=mmap.ACCESS_READ)

    def _unpack(self, target: IO[bytes]) -> None:
        import zlib

        import zstandard

        try:
            with self._path.open("rb") as file:
                if self._path.suffix == ".gz":
                    with gzip.GzipFile(fileobj=file) as unpacked:
                        shutil.copyfileobj(unpacked, target, 1 << 20)
                else:
                    zstandard.ZstdDecompressor().copy_stream(file, target)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            fail(
                self._source,
                f"{self._path} cannot be unpacked ({error}); is it complete, and of the type that "
                "its name says?",
            )


def is_compressed(path: Path) -> bool:
    """Whether the name says so."""
    return path.suffix in (".gz", ".zst")
