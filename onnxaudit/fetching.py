"""Suspects that lie elsewhere, by fsspec URL: what is there, and a bounded cache of what was fetched."""

from __future__ import annotations

import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from onnxaudit.errors import OnnxauditError, SuspectError, UsageError, missing_extra

BACKENDS: Mapping[str, str] = MappingProxyType(
    {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs"}
)
"""The package that brings each file system which does not come with fsspec."""


def shown_url(url: str) -> str:
    """A URL without what may be secret in it: user information, query and fragment, of each part of a chain of URLs."""
    if "::" in url:
        return "::".join(shown_url(part) for part in url.split("::"))
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('#')[0]}"


def listed(url: str, suffixes: Collection[str]) -> list[str]:
    """The files that a URL names: itself; what a pattern (``*``) matches; the models, by suffix, below a folder. Sorted.

    Raises UsageError where the package for this kind of URL is missing, SuspectError where it cannot be listed.
    """
    system, path = _open(url)
    try:
        if re.search(r"[*?\[]", path):
            found = [name for name in system.glob(path) if _has(name, suffixes)]
        elif _has(path, suffixes) or not system.isdir(path):
            return [url]
        else:
            found = [name for name in system.find(path) if _has(name, suffixes)]
    except Exception as error:  # every file system raises errors of its own
        raise _failed(url, "cannot be listed", error) from None
    return sorted(str(system.unstrip_protocol(name)) for name in found)


def _has(name: str, suffixes: Collection[str]) -> bool:
    return Path(name).suffix.lower() in suffixes


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there."""
    scheme = url.partition("://")[0].lower()
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise missing_extra("fsspec", "remote") from None
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        package = BACKENDS.get(scheme) or getattr(error, "name", None) or "the package that fsspec names for it"
        raise UsageError(
            f"{scheme}:// needs {package}, which is not installed", f"Install it with: pip install {package}"
        ) from None
    except ValueError:
        raise UsageError(f"nothing here opens {scheme}:// URLs", "Give a file, http(s)://, or a URL that fsspec knows.") from None
    except Exception as error:  # as above: credentials, hosts and addresses fail in many ways
        raise _failed(url, "cannot be reached", error) from None
    return system, str(path)


def _failed(url: str, what: str, error: Exception) -> OnnxauditError:
    if isinstance(error, FileNotFoundError):
        return SuspectError(f"{shown_url(url)} is not there", "Check the URL.")
    return SuspectError(  # not what the error says: that may quote the URL in whatever form, with the secrets in it
        f"{shown_url(url)} {what}: {type(error).__name__}", "Check the URL and the credentials."
    )


class Cache:
    """Files fetched by URL, in a folder of its own, of at most ``limit`` bytes: the least recently used go first.

    Each lies in a folder of its own under its own name, so that its suffix tells its kind and no model finds another's weights
    beside it. A file is there only once it has arrived whole.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._kept: OrderedDict[str, tuple[Path, int]] = OrderedDict()
        self._count = 0

    @property
    def size(self) -> int:
        """Bytes kept."""
        return sum(size for _, size in self._kept.values())

    def fetch(self, url: str) -> Path:
        """The file behind a URL, fetched unless it is here; it stays at least until the next is fetched.

        Raises UsageError for a missing package or a file larger than the limit, SuspectError where it cannot be fetched.
        """
        if url in self._kept and self._kept[url][0].is_file():
            self._kept.move_to_end(url)
            return self._kept[url][0]
        self._kept.pop(url, None)
        system, path = _open(url)
        try:
            size = system.info(path).get("size")
        except Exception as error:  # as above: each file system has errors of its own
            raise _failed(url, "cannot be fetched", error) from None
        self._make_room(url, size or 0)
        self._count += 1
        place = self._folder / str(self._count)
        try:
            place.mkdir(parents=True)
            whole = self._download(system, path, place, url, size)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        self._kept[url] = (whole, whole.stat().st_size)
        self._make_room(url, 0, spare=url)
        return whole

    def _download(self, system: Any, path: str, place: Path, url: str, size: int | None) -> Path:
        part, whole = place / ".part", place / Path(path).name
        try:
            system.get_file(path, str(part))
        except Exception as error:  # as above: each file system has errors of its own
            raise _failed(url, "cannot be fetched", error) from None
        arrived = part.stat().st_size
        if size is not None and arrived != size:
            raise SuspectError(f"{shown_url(url)} was cut off: {arrived} of {size} bytes arrived", "Scan again to fetch it anew.")
        os.replace(part, whole)  # noqa: PTH105 - the atomic one
        return whole

    def _make_room(self, url: str, size: int, spare: str | None = None) -> None:
        if size > self._limit or (spare and self._kept[spare][1] > self._limit):
            raise UsageError(
                f"{shown_url(url)} is larger than the cache, which has {self._limit} bytes", "Give a larger --cache, in MiB."
            )
        while self.size + size > self._limit:
            _, (path, _) = self._kept.popitem(last=False)
            shutil.rmtree(path.parent, ignore_errors=True)
