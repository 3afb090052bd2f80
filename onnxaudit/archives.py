"""What a model file is, told from its bytes alone, and whether it is safe to hand to a loader: nothing here runs a file."""

from __future__ import annotations

import hashlib
import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal, TypeAlias

from onnxaudit.errors import ArtefactError
from onnxaudit.regular import open_regular

Kind: TypeAlias = Literal["torchscript", "exported", "weights", "pickle", "safetensors", "onnx", "unknown"]

MAX_UNPACKED = 16 * 2**30
"""Bytes that an archive may unpack to; a larger model is not what this tool is for."""
MAX_RATIO = 200
"""How many times its own size an archive of more than 64 MiB may unpack to: tensors are stored, only code is deflated."""
MAX_PART = 64 * 2**20
"""Bytes of one member (a pickle, a program's text) that is read here."""
MAX_LISTED = 16 * 2**20
"""Bytes of an archive's list of members; it is read as a whole."""
MAX_ONNX = 2**31
"""Bytes of an ONNX file: what a protobuf message can have."""

_TAIL = 2**16 + 256
_ZIP = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote first before it wrote zip files
_TENSOR_NAMES = re.compile(
    r"collections OrderedDict|_codecs encode|torch Tensor|torch\.nn\.parameter Parameter|torch\.storage \w+Storage"
    r"|torch (\w+Storage|Size|device|per_\w+|u?int\d+|b?float\d+\w*|bool|complex\d+|double|half|long)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|qtensor|sparse_tensor|device_tensor_from_\w+)"
    r"|torch\._tensor _rebuild_from_type_v2|torch\.serialization _get_layout"
    r"|numpy(\.core|\._core)?\.multiarray (scalar|_reconstruct)|numpy (dtype|ndarray)"
)


def sniff(path: Path) -> Kind:
    """What the file holds, whatever it is called. "weights": tensors only; "pickle": anything else that unpickling would build.

    Raises ArtefactError for a file that cannot be read, a damaged or oversized zip, or one with unsafe member names.
    """
    try:
        with open_regular(path) as file:
            head = file.read(16)
            if head.startswith(_ZIP):
                with open_archive(path) as archive:
                    return _kind_of_archive(archive, path)
            if head[:1] == b"\x80":
                file.seek(0)
                return _kind_of_legacy(file)
            return _kind_of_plain(head, path.stat().st_size)
    except OSError as error:
        raise ArtefactError(f"{path.name} cannot be read: {error.strerror or error}") from None


def open_archive(path: Path) -> zipfile.ZipFile:
    """The zip file at ``path``, opened, with every member's name and the size it unpacks to checked.

    Raises ArtefactError if it is damaged, unpacks to too much, or has member names that are absolute, hold ``..`` or repeat.
    """
    _check_directory(path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ArtefactError(f"{path.name} is a damaged archive: {error}", "Copy or download it again.") from None
    names = [info.filename for info in archive.infolist()]
    unsafe = next((name for name in names if _unsafe(name)), None)
    # torch looks names up without case and takes the first, zipfile takes the last: two readers must not see two files
    repeated = len({name.casefold() for name in names}) != len(names)
    unpacked = sum(info.file_size for info in archive.infolist())
    size = path.stat().st_size
    if unsafe is None and not repeated and unpacked <= MAX_UNPACKED and unpacked <= max(64 * 2**20, MAX_RATIO * size):
        return archive
    archive.close()
    if unsafe is not None:
        raise ArtefactError(
            f"{path.name} has a member that leads outside the archive: {unsafe[:80]!r}", "It is not safe to open."
        )
    if repeated:
        raise ArtefactError(f"{path.name} has two members of one name", "Loaders disagree on which one counts.")
    raise ArtefactError(f"{path.name} ({size} bytes) would unpack to {unpacked} bytes", "It is not safe to open.")


def _check_directory(path: Path) -> None:
    """Raise ArtefactError for an archive with more members, or of more bytes, than a model has: zipfile would read them all."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        tail = file.read(_TAIL)
    # the record that ends a zip file (and its 64-bit form): how many bytes the list of members has, at a fixed place
    plain, large = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    sizes = [int.from_bytes(tail[plain + 12 : plain + 16], "little")] if plain >= 0 else []
    sizes += [int.from_bytes(tail[large + 40 : large + 48], "little")] if large >= 0 else []
    if size > MAX_UNPACKED or any(listed > MAX_LISTED for listed in sizes if listed != 0xFFFFFFFF):
        raise ArtefactError(f"{path.name} has more bytes or members than a model has", "It is not safe to open.")


def _unsafe(name: str) -> bool:
    return name.startswith("/") or "\\" in name or "\0" in name or name[1:2] == ":" or ".." in name.split("/")


def read_file(path: Path, limit: int = MAX_UNPACKED) -> bytes:
    """A model's bytes. Raises ArtefactError if it cannot be read, or has more than ``limit``: a sparse file has any number."""
    try:
        if (size := path.stat().st_size) > limit:
            raise ArtefactError(f"{path.name} has {size} bytes, more than such a model can have", "It is not safe to open.")
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise ArtefactError(f"{path.name} cannot be read: {error.strerror or error}") from None


def sha256_of(path: Path) -> str:
    """The digest of a model's file, which is not held in memory. Raises ArtefactError if it cannot be read, or is too large."""
    try:
        if path.stat().st_size > MAX_UNPACKED:
            raise ArtefactError(f"{path.name} has more bytes than a model has", "It is not safe to open.")
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtefactError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _kind_of_archive(archive: zipfile.ZipFile, path: Path) -> Kind:
    inner = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if "serialized_exported_program.json" in archive.namelist() or any(re.fullmatch(r"models/.+\.json", name) for name in inner):
        return "exported"
    if "data.pkl" in inner:
        member = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
        return _kind_of_pickle(io.BytesIO(read_member(archive, member, path)))
    return "unknown"


def read_member(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """One member's bytes. Raises ArtefactError if it is damaged or larger than MAX_PART."""
    if archive.getinfo(name).file_size > MAX_PART:
        raise ArtefactError(f"{path.name}: its {name} is larger than {MAX_PART} bytes", "It is not safe to open.")
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ArtefactError(f"{path.name} is damaged at {name}: {error}", "Copy or download it again.") from None
    except Exception as error:  # zlib.error and lzma's are not of one family
        raise ArtefactError(f"{path.name} is damaged at {name}: {error}", "Copy or download it again.") from None


def _kind_of_pickle(file: IO[bytes]) -> Kind:
    """ "weights" if all that one pickle names are the parts tensors are rebuilt from, else "pickle"; it is read, never run."""
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL" and not _TENSOR_NAMES.fullmatch(str(argument)):
                return "pickle"
            # protocols above 2 name things on the stack, where the names can be hidden; torch.save does not use them
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
                return "pickle"
    except Exception:  # a broken pickle can make pickletools raise anything
        return "pickle"
    return "weights"


def _kind_of_legacy(file: IO[bytes]) -> Kind:
    """The kind of a raw pickle: torch.save's old layout is a magic number, a version, system facts, then the object."""
    try:
        magic = any(argument == _LEGACY_MAGIC for _, argument, _ in pickletools.genops(file))
    except Exception:  # as above: what cannot be scanned is not trusted
        return "pickle"
    kinds = [_kind_of_pickle(file) for _ in range(4)] if magic else ["pickle"]
    return "weights" if set(kinds) == {"weights"} else "pickle"


def _kind_of_plain(head: bytes, size: int) -> Kind:
    if head[4:8] == b"ORTM":
        return "onnx"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    # ModelProto: ir_version (field 1, small), then the tag of another of its first fields
    if len(head) > 2 and head[0] == 0x08 and 0 < head[1] < 0x40 and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42):
        return "onnx"
    return "unknown"


# What a suspect's program may ask for. torch.export.load unpickles without limits, evaluates expressions and looks functions
# up by dotted name from `torch`, whose attributes include `os`; TorchScript can read and write files.
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims|prim|quantized|quantized_decomposed|higher_order|torchvision)\.(?!from_file|save)[a-z_]\w*(\.\w+)?"
    r"|torch\._?sym_\w+|torch\.sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|and_|or_|xor|not_|eq|ne|lt|le|gt|ge|lshift|rshift)"
)
_NAME = re.compile(r"[\w.]*")
_KEY = re.compile(r"[\w.$-]*")
_WORDS = re.compile(r"'[\w.]*'|[A-Za-z_]\w*|[^\w\s]|\d[\w.]*")
_EXPRESSION = re.compile(
    r"'\w*'|\d[\d.]*|[suiz]\w{0,3}\d+|[-+*/()=,.<>&|~!%]|True|False|Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Eq|Ne|Lt|Le|Gt|Ge"
    r"|Piecewise|And|Or|Not|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|PythonMod|Where|IntTrueDiv|FloatTrueDiv|PowByNatural|FloatPow"
    r"|TruncToInt|RoundToInt|CeilToInt|FloorToInt|ToFloat|Identity|oo|int_oo|ceiling|floor|integer|positive|nonnegative|real|evaluate"
)
_FILE_ACCESS = re.compile(rb"\b(from_file|torch\.save|aten\.save)\b")


def screen_torchscript(path: Path) -> None:
    """Raise ArtefactError if a TorchScript archive's code reads or writes files."""
    with open_archive(path) as archive:
        for name in archive.namelist():
            if name.partition("/")[2].startswith("code/") and not name.endswith(".debug_pkl"):
                found = _FILE_ACCESS.search(read_member(archive, name, path))
                if found:
                    raise ArtefactError(f"{path.name} uses {found[0].decode()}, which touches files", "It is not safe to run.")


def screen_exported(path: Path) -> None:
    """Raise ArtefactError if a ``torch.export`` archive holds more than tensors and calls of tensor operators."""
    with open_archive(path) as archive:
        for name in archive.namelist():
            inner = name.partition("/")[2]
            if inner.startswith(("data/aotinductor", "data/executorch")) or re.search(r"/(custom|opaque)_obj_", name):
                raise ArtefactError(
                    f"{path.name} holds compiled code or foreign objects ({inner})", "Export it again without them."
                )
            if name.endswith(".pt"):
                _screen_pickle(archive, name, path)
            elif name.endswith(".json"):
                document = _parse(read_member(archive, name, path), path)
                _screen_program(document, path)
                for pickled in _pickled(document):
                    folder = name.rpartition("/")[0]
                    _screen_pickle(archive, f"{folder}/{pickled}", path)


def _parse(data: bytes, path: Path) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ArtefactError(f"{path.name} is damaged: its program is not JSON", "Copy or download it again.") from None


def _pickled(document: object) -> Iterator[str]:
    """The members that a table of weights or constants says are pickles."""
    config = document.get("config") if isinstance(document, dict) else None
    for entry in config.values() if isinstance(config, dict) else ():
        if isinstance(entry, dict) and entry.get("use_pickle"):
            yield str(entry.get("path_name"))


def _screen_pickle(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    if name not in archive.namelist():
        raise ArtefactError(f"{path.name} is damaged: it has no {name}")
    data = read_member(archive, name, path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            kind = _kind_of_archive(inner, path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        kind = "weights" if not data else "pickle"
    if kind != "weights":
        raise ArtefactError(f"{path.name} holds a pickle that builds more than tensors ({name})", "It is not safe to open.")


def _screen_program(document: object, path: Path) -> None:
    """Walk a program's JSON: functions that it calls, names that become code, and expressions that are evaluated."""
    stack = [document]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, dict):
            notes = value.get("metadata") if isinstance(value.get("target"), str) else None
            if isinstance(notes, dict) and all(isinstance(note, str) for note in notes.values()):
                value = {key: part for key, part in value.items() if key != "metadata"}  # a node's stack traces: any text
            for key, part in value.items():
                stack.append(part)
                if not _KEY.fullmatch(key) or (isinstance(part, str) and not _harmless(key, part)):
                    raise ArtefactError(
                        f"{path.name}: its program has an unexpected {key[:40]}: {str(part)[:60]!r}", "It is not safe."
                    )


def _harmless(key: str, text: str) -> bool:
    if key == "target":
        return bool(_TARGET.fullmatch(text)) and "__" not in text.replace("__and__", "").replace("__or__", "")
    if key == "expr_str":
        words = _WORDS.findall(text)
        return "".join(words) == re.sub(r"\s+", "", text) and all(_EXPRESSION.fullmatch(word) for word in words)
    if key == "name" or key.endswith("_name"):
        return bool(_NAME.fullmatch(text))
    return "default_factory" not in text and "\\u" not in text  # pytree imports the module that a defaultdict's context names
