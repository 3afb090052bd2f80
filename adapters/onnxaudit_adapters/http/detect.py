"""Which dialect a server speaks and what it says of its model, with a trail of what was tried for the error message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast
from urllib.parse import urlsplit

from onnxaudit.errors import Unreachable, UsageError
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.http.dialects import Dialect
from onnxaudit_adapters.http.huggingface import HuggingFace, is_hugging_face
from onnxaudit_adapters.http.invocations import Invocations, invocations_address
from onnxaudit_adapters.http.names import ClassNames
from onnxaudit_adapters.http.options import Address, HttpOptions
from onnxaudit_adapters.http.plain import Plain
from onnxaudit_adapters.http.probes import probe, read_server, tried
from onnxaudit_adapters.http.strict_json import ReplyError
from onnxaudit_adapters.http.template import Template, Templated
from onnxaudit_adapters.http.tfserving import TfServing, metadata_address, predict_address, read_inputs
from onnxaudit_adapters.http.tfserving import dtype_of as tensorflow_dtype
from onnxaudit_adapters.http.torchserve import TorchServe, predictions_address
from onnxaudit_adapters.http.transport import Transport
from onnxaudit_adapters.http.v2 import V2, Endpoints, Metadata, dtype_of, endpoints, read_metadata
from onnxaudit_adapters.signature import Signature, read_signature

_FORMS = {
    "v2": "https://HOST/v2/models/NAME[/versions/V]",
    "tfserving": "https://HOST/v1/models/NAME[:predict]",
}


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
    """The dialect: the user's, else by the URL, else by what the server says, else plain where the URL names a path.

    Raises UsageError where something has to be said by an option, SuspectError where the server is down or refuses.
    """
    names = _names(target, options)
    if options.template is not None:
        return _templated(target, address, options, names)
    spoken = options.dialect or by_url(address)
    trail: tuple[str, ...] = ()
    if spoken is None:
        address, spoken, trail = probe(address, transport)
    if spoken.partition("-")[0] == "v2":
        places = endpoints(address)
        if places is None:
            raise UsageError(f"{address.shown} names no model of the Open Inference Protocol", f"Give the URL as {_FORMS['v2']}.")
        return _v2(target, places, options, transport, names)
    if spoken == "tfserving" and (place := metadata_address(address)) is not None:
        return replace(_tfserving(target, address, place, options, transport, names), trail=trail)
    return replace(_other(spoken, target, address, options, names), trail=trail)


def by_url(address: Address) -> str | None:
    """The dialect that a URL tells by its path or host, None if it tells none."""
    if endpoints(address) is not None:
        return "v2"
    if is_hugging_face(address) and "/models/" in urlsplit(address.url).path:
        return "huggingface"
    if predict_address(address) is not None:
        return "tfserving"
    if invocations_address(address) is not None:
        return "invocations"
    return "torchserve" if predictions_address(address) is not None else None


def _names(target: Target, options: HttpOptions) -> ClassNames:
    """The names of the classes: the user's, else the bundle's. Raises UsageError where there are not as many as classes."""
    if options.labels and target.num_classes is not None and len(options.labels) != target.num_classes:
        raise UsageError(
            f"the file of labels has {len(options.labels)} names, and the victim has {target.num_classes} classes",
            "Give one name a line, in the victim's order.",
        )
    if options.labels:
        return ClassNames(options.labels)
    # Where the label sets differ, only schemes run that need no label map: any numbers will do.
    return ClassNames(discover=True) if target.num_classes is None else ClassNames(options.class_names)


def _other(spoken: str, target: Target, address: Address, options: HttpOptions, names: ClassNames) -> Found:
    """A dialect that says nothing of the model: the input is the user's or the victim's."""
    base, _, form = spoken.partition("-")
    output, classes, images = options.output_name, target.num_classes, form == "png"
    dialect: Dialect
    if base == "tfserving":
        place = predict_address(address)
        if place is None:
            raise UsageError(f"{address.shown} names no model of TensorFlow Serving", f"Give the URL as {_FORMS[base]}.")
        dialect = TfServing(place, options.input_name, output, classes, names, images)
    elif base == "invocations":
        place = invocations_address(address) or address
        dialect = Invocations(place, options.input_name, output, classes, names, form or "json")
    elif base == "torchserve":
        dialect = TorchServe(address, options.input_name, output, classes, names)
    elif base == "huggingface":
        dialect = HuggingFace(address, classes, names, images)
    else:
        dialect = Plain(address, "input" if options.input_name is None else options.input_name, output, classes, names)
    single = base in ("torchserve", "huggingface") or spoken == "invocations-png"
    return Found(dialect, target.input_spec(), max_batch=1 if single else None, facts={"dialect": dialect.name})


def _tfserving(
    target: Target, address: Address, place: Address, options: HttpOptions, transport: Transport, names: ClassNames
) -> Found:
    """TensorFlow Serving, which may say what the model takes. Raises UsageError where several inputs want to be filled."""
    found = _other("tfserving", target, address, options, names)
    try:
        inputs = read_inputs(transport.get(place, guessed=True))
    except ReplyError:  # whatever answers there knows nothing of the model
        inputs = {}
    if not inputs:
        return found
    wanted = options.input_name or next(iter(inputs))
    if wanted not in inputs or (len(inputs) > 1 and not options.input_name):
        missing = f"has no input {wanted!r}" if wanted not in inputs else f"takes {len(inputs)} inputs"
        raise UsageError(f"{address.shown} {missing}", f"It has {', '.join(inputs)}: choose with --input-name.")
    dims, datatype = inputs[wanted]
    signature = read_signature(replace(target, options={}), dims, tensorflow_dtype(datatype))
    dialect = replace(cast("TfServing", found.dialect), dims=signature.dims)
    return replace(found, dialect=dialect, input=signature.spec, batch=signature.batch)


def _templated(target: Target, address: Address, options: HttpOptions, names: ClassNames) -> Found:
    """The dialect of a target file, its variables filled in."""
    said = options.template or {}
    template = Template.read(said["request"], said["reply"]).filled(options.fills)
    if template.single and options.batch > 1:
        raise UsageError(
            f"the template holds one query, and --batch asks for {options.batch}", "Leave --batch and limits.batch out."
        )
    kind = next((value for name, value in options.headers.items() if name.lower() == "content-type"), "")
    dialect = Templated(address, template, target.num_classes, names, options.batch == 1, kind)
    return Found(dialect, target.input_spec(), max_batch=options.batch, facts={"dialect": dialect.name})


def _v2(target: Target, places: Endpoints, options: HttpOptions, transport: Transport, names: ClassNames) -> Found:
    reply = transport.get(places.model)
    if (reply.status == 429 or reply.status >= 500) and not (options.input_name and target.shape):
        raise Unreachable(
            f"{places.model.shown} answered {reply.status} when it was asked what the model takes",
            "Try again later, or pass --input and --input-name.",
        )
    metadata, trail = Metadata(), [tried(places.model, reply)]
    if reply.ok:
        try:
            metadata = read_metadata(reply)
        except ReplyError as error:
            trail.append(error.what)
    server = transport.get(places.server)
    trail.append(tried(places.server, server))
    facts, extensions = read_server(server)
    name = _input_name(metadata, target, options, places.model.shown, trail)
    signature = _signature(target, metadata, name)
    form = (options.dialect or "").partition("-")[2] or "json"
    if options.dialect is None and "binary_tensor_data" in extensions:
        form = "binary"
    output = options.output_name
    if form == "classes" and output is None:
        output = _ranked_output(metadata, places.model.shown)
    dialect = V2(places.infer, name, output, target.num_classes, signature.dims, names, form)
    cleaned = {key: transport.redaction.begin(value)[:80] for key, value in (facts | dict(metadata.facts)).items()}
    return Found(
        dialect,
        signature.spec,
        signature.batch,
        metadata.max_batch,
        {"dialect": dialect.name, **cleaned},
        tuple(trail),
    )


def _ranked_output(metadata: Metadata, shown: str) -> str:
    """The output whose classes the server is to rank. Raises UsageError where it is not the only one."""
    if len(metadata.outputs) != 1:
        said = f"it has {', '.join(metadata.outputs)}" if metadata.outputs else "its metadata name none"
        raise UsageError(f"{shown} ranks the classes of an output that is named, and {said}", "Choose with --output-name.")
    return metadata.outputs[0]


def _input_name(metadata: Metadata, target: Target, options: HttpOptions, shown: str, trail: Sequence[str]) -> str:
    """The tensor to fill. Raises UsageError where neither the metadata nor the user says which, or of what size."""
    wanted = options.input_name
    if not metadata.inputs:
        if wanted and target.shape is not None:
            return wanted
        missing = " and ".join(
            flag for flag, given in (("--input (as 32x32x3)", target.shape), ("--input-name", wanted)) if not given
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
