"""Which dialect a server speaks and what it says of its model, with a trail of what was tried for the error message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.http.dialects import Dialect, Reply
from onnxaudit_adapters.http.options import Address, HttpOptions
from onnxaudit_adapters.http.plain import Plain
from onnxaudit_adapters.http.strict_json import ReplyError, parse
from onnxaudit_adapters.http.transport import Transport
from onnxaudit_adapters.http.v2 import V2, Endpoints, Metadata, dtype_of, endpoints, read_metadata
from onnxaudit_adapters.signature import Signature, read_signature

_FORM = "https://HOST/v2/models/NAME[/versions/V]"


@dataclass(frozen=True, slots=True)
class Found:
    """How the suspect is asked. batch: the only size it takes; max_batch: the largest it declares; trail: what was tried."""

    dialect: Dialect
    input: InputSpec
    batch: int | None = None
    max_batch: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    trail: tuple[str, ...] = ()


def detect(target: Target, address: Address, options: HttpOptions, transport: Transport) -> Found:
    """The dialect: the user's, else by the path, else by what the server says, else plain.

    Raises UsageError where something has to be said by an option, SuspectError where the server is down or refuses.
    """
    places = endpoints(address)
    if options.dialect == "plain":
        return _plain(target, address, options, ())
    if places is not None:
        return _v2(target, places, options, transport)
    if options.dialect == "v2":
        raise UsageError(f"{address.shown} names no model of the Open Inference Protocol", f"Give the URL as {_FORM}.")
    server = address.at("/v2")
    reply = transport.get(server)
    if _server_facts(reply):
        raise UsageError(
            f"{server.shown} speaks the Open Inference Protocol, and {address.shown} names no model of it",
            f"Give the URL as {_FORM}, or --dialect plain if this path takes plain JSON.",
        )
    return _plain(target, address, options, ("the path is not …/v2/models/NAME", _tried(server, reply)))


def _plain(target: Target, address: Address, options: HttpOptions, trail: tuple[str, ...]) -> Found:
    name = "input" if options.input_name is None else options.input_name
    dialect = Plain(address, name, options.output_name, target.num_classes)
    return Found(dialect, target.input_spec(), facts={"dialect": "plain"}, trail=trail)


def _v2(target: Target, places: Endpoints, options: HttpOptions, transport: Transport) -> Found:
    reply = transport.get(places.model)
    metadata, trail = Metadata(), [_tried(places.model, reply)]
    if reply.ok:
        try:
            metadata = read_metadata(reply)
        except ReplyError as error:
            trail.append(error.what)
    server = transport.get(places.server)
    name = _input_name(metadata, target, options, places.model.shown, trail)
    signature = _signature(target, metadata, name)
    dialect = V2(places.infer, name, options.output_name, target.num_classes, signature.dims)
    cleaned = {
        key: transport.redaction.clean(value)[:80] for key, value in (_server_facts(server) | dict(metadata.facts)).items()
    }
    return Found(
        dialect,
        signature.spec,
        signature.batch,
        metadata.max_batch,
        {"dialect": "v2", **cleaned},
        (*trail, _tried(places.server, server)),
    )


def _input_name(metadata: Metadata, target: Target, options: HttpOptions, shown: str, trail: Sequence[str]) -> str:
    """The tensor to fill. Raises UsageError where neither the metadata nor the user says which, or of what size."""
    wanted = options.input_name
    if not metadata.inputs:
        if wanted and target.shape is not None:
            return wanted
        missing = " and ".join(
            flag for flag, given in (("--input (as 3x32x32)", target.shape), ("--input-name", wanted)) if not given
        )
        raise UsageError(
            f"{shown} says nothing of its input ({'; '.join(trail)})", f"Check the model's name, and pass {missing}."
        )
    names = ", ".join(metadata.inputs)
    if wanted and wanted not in metadata.inputs:
        raise UsageError(f"{shown} has no input {wanted!r}", f"It has {names}.")
    if wanted is None and len(metadata.inputs) > 1:
        raise UsageError(f"{shown} takes several inputs: {names}", "Choose with --input-name.")
    return wanted or next(iter(metadata.inputs))


def _signature(target: Target, metadata: Metadata, name: str) -> Signature:
    dims, datatype = metadata.inputs.get(name, ((), ""))
    return read_signature(replace(target, options={}), dims, dtype_of(datatype))


def _server_facts(reply: Reply) -> dict[str, str]:
    """Name and version of a V2 server, empty where the reply is none of one."""
    if not reply.ok:
        return {}
    try:
        document = parse(reply.body)
    except ReplyError:
        return {}
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        return {}
    return {"server": f"{document['name']} {document.get('version', '')}".strip()}


def _tried(address: Address, reply: Reply) -> str:
    return f"GET {address.shown} answered {reply.status}"
