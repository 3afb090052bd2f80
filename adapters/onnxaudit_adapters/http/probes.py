"""What a server whose URL tells no dialect says of itself: four addresses that servers of each kind are known to answer."""

from __future__ import annotations

from urllib.parse import urlsplit

from onnxaudit.errors import UsageError
from onnxaudit_adapters.http.dialects import Reply
from onnxaudit_adapters.http.options import DIALECTS, Address
from onnxaudit_adapters.http.strict_json import ReplyError, parse
from onnxaudit_adapters.http.transport import Transport


def probe(address: Address, transport: Transport) -> tuple[Address, str, tuple[str, ...]]:
    """Where to ask, in which dialect, and what was tried; costs no query.

    A path that no other dialect has is taken for plain JSON. Raises UsageError where the URL names no path and the server no
    single model, with what was tried.
    """
    path = urlsplit(address.url).path.rstrip("/")
    trail = ["the path is that of no known dialect" if path else "the URL names no path"]

    def ask(place: str) -> object:
        there = address.at(place)
        reply = transport.get(there, guessed=True)
        trail.append(tried(there, reply))
        try:
            return parse(reply.body) if reply.ok and reply.body.strip() else {} if reply.ok else None
        except ReplyError:
            return None

    server = ask("/v2")
    if isinstance(server, dict) and isinstance(server.get("name"), str):
        raise UsageError(
            f"{address.at('/v2').shown} speaks the Open Inference Protocol, and {address.shown} names no model of it",
            "Give the URL as https://HOST/v2/models/NAME[/versions/V], or --dialect plain if this path takes plain JSON.",
        )
    models = ask("/v1/models")
    listed = models.get("models") if isinstance(models, dict) else None
    if not path and isinstance(listed, list) and len(listed) == 1 and isinstance(listed[0], str):
        return address.at(f"/v1/models/{listed[0]}:predict"), "tfserving", tuple(trail)
    if ask("/ping") == {} and not path:
        return address.at("/invocations"), "invocations", tuple(trail)
    posts = _posts(ask("/openapi.json"))
    if path in posts or (path and not posts):
        return address, "plain", tuple(trail)
    if not path and len(posts) == 1:
        return address.at(posts[0]), "plain", tuple(trail)
    offered = f" It takes POST at {', '.join(posts[:8])}." if posts else ""
    raise UsageError(
        f"{address.shown} does not tell how it wants to be asked ({'; '.join(trail)})",
        f"Give the URL with its path, and --dialect ({', '.join(DIALECTS)}) or a --target file.{offered}",
    )


def _posts(document: object) -> list[str]:
    """Paths of an OpenAPI description that take a POST and have no parts to be filled in."""
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, dict):
        return []
    return [path for path, verbs in paths.items() if isinstance(verbs, dict) and "post" in verbs and "{" not in path]


def read_server(reply: Reply) -> tuple[dict[str, str], tuple[str, ...]]:
    """Name and version of a V2 server, and its extensions; empty where the reply is none of one."""
    if not reply.ok:
        return {}, ()
    try:
        document = parse(reply.body)
    except ReplyError:
        return {}, ()
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        return {}, ()
    extensions = document.get("extensions")
    known = tuple(map(str, extensions)) if isinstance(extensions, list) else ()
    return {"server": f"{document['name']} {document.get('version', '')}".strip()}, known


def tried(address: Address, reply: Reply) -> str:
    """One step of a trail."""
    return f"GET {address.shown} answered {reply.status}"
