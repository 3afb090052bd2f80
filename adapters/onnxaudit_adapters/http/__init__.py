"""Suspects behind HTTP: dialects are pure, the transport has the only socket, the suspect puts them together."""

from onnxaudit_adapters.http.suspect import HttpSuspect, open_http

__all__ = ["HttpSuspect", "open_http"]
