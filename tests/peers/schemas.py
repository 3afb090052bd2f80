"""The JSON schemas that Hugging Face publishes of its image classification task, fetched with npm, never kept here.

The package (MIT licence) is named by version and by digest: another file under that name is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from tests.peers import environments
from tests.peers.environments import CannotInstallError, Place, filling

PACKAGE = "@huggingface/tasks@0.21.54"
INTEGRITY = "sha512-OVFpVlLV6SSjG67Vdo98+qLvs/5yki0Ni1EWzbLrlBfZ+N6t4kM6aAeJLkFhikYYOZQyVNcWUN8UtPTs3Km05g=="
"""As npm's lock files give it."""
NAME = "schemas"
_TASKS = "package/src/tasks"
_MEMBERS = {
    "common": f"{_TASKS}/common-definitions.json",
    "input": f"{_TASKS}/image-classification/spec/input.json",
    "output": f"{_TASKS}/image-classification/spec/output.json",
}


def schemas() -> dict[str, dict[str, Any]]:
    """The documents by what they are: ``input``, ``output``, and ``common``, to which these refer. Raises CannotInstallError."""
    if shutil.which("npm") is None:
        raise CannotInstallError("Hugging Face's schemas cannot be fetched here: there is no npm")
    with filling(NAME, f"{PACKAGE} {INTEGRITY}") as place:
        if place:
            _fetch(place)
    return {name: json.loads((environments.HOME / NAME / f"{name}.json").read_text()) for name in _MEMBERS}


def _fetch(place: Place) -> None:
    place.run("npm", "pack", "--silent", "--ignore-scripts", PACKAGE)
    (archive,) = place.folder.glob("*.tgz")
    check_integrity(archive)
    with tarfile.open(archive) as members:
        for name, member in _MEMBERS.items():
            content = members.extractfile(member)
            assert content is not None, member
            (place.folder / f"{name}.json").write_bytes(content.read())


def check_integrity(archive: Path) -> None:
    """Raise CannotInstallError unless the file is the one that was meant."""
    found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != INTEGRITY:
        raise CannotInstallError(f"{PACKAGE} is not what it was: its integrity is {found}, not {INTEGRITY}")
