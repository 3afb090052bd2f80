"""A --target file beside the options of a command: what is typed wins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxaudit.registry import read_target_file


@dataclass(frozen=True, slots=True)
class Described:
    """A suspect as a file describes it. input: by the fields of Target; private: it names classes that nothing explains."""

    url: str
    input: Mapping[str, Any]
    http: Mapping[str, Any]
    private: bool

    def merged_input(self, typed: Mapping[str, Any]) -> dict[str, Any]:
        """The input with what was typed."""
        return {**self.input, **{key: value for key, value in typed.items() if value is not None}}

    def merged_http(self, typed: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the HTTP adapter with what was typed; headers are put together."""
        given = {key: value for key, value in typed.items() if value is not None and key != "headers"}
        return {**self.http, **given, "headers": {**self.http.get("headers", {}), **typed.get("headers", {})}}


def described(path: Path) -> Described:
    """What a file says, with the environment's variables. Raises UsageError or ArtefactError, before anything is sent."""
    said = read_target_file(path, os.environ)
    return Described(said["url"], said["input"], said["http"], bool(said["private"]))
