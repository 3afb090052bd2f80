"""Signatures: Ed25519 over the pre-authentication encoding of DSSE (github.com/secure-systems-lab/dsse, protocol 1.0)."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxaudit.decode import canonical, decode, parse
from onnxaudit.errors import ArtefactError, UsageError, missing_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.onnxaudit.commitment+json"
EXTRA = "evidence"


@dataclass(frozen=True, slots=True)
class Signature:
    """keyid: sha256 of the public key, DER. sig: base64."""

    keyid: str
    sig: str


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed document, as DSSE lays it out. payload: base64."""

    payload: str
    payloadType: str  # noqa: N815 - DSSE's name
    signatures: tuple[Signature, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """What is signed: type and payload, each with its length, so that no other pair has the same bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, key: bytes, where: str) -> str:
    """The envelope of a commitment, as text. key: a private key, PEM, named in messages by ``where``."""
    private = _private_key(key, where)
    signature = private.sign(pae(PAYLOAD_TYPE, payload))
    signed = Signature(_key_id(private.public_key()), base64.b64encode(signature).decode())
    return canonical(Envelope(base64.b64encode(payload).decode(), PAYLOAD_TYPE, (signed,))) + "\n"


def signed_payload(text: str, public_key: bytes, where: str, key_name: str) -> tuple[bytes, str]:
    """What an envelope holds, and the id of the key, if that key signed it. Raises ArtefactError if not.

    public_key: PEM.
    """
    envelope = decode(Envelope, parse(text, where), where)
    if canonical(envelope) + "\n" != text or envelope.payloadType != PAYLOAD_TYPE:
        raise ArtefactError(f"{where} is not an envelope as onnxaudit writes it", "It was changed after it was written.")
    try:
        payload = base64.b64decode(envelope.payload, validate=True)
        signatures = [base64.b64decode(each.sig, validate=True) for each in envelope.signatures]
    except ValueError as error:
        raise ArtefactError(f"{where} is damaged: {error}") from None
    key = _public_key(public_key, key_name)
    from cryptography.exceptions import InvalidSignature

    known = _key_id(key)
    for named, signature in zip(envelope.signatures, signatures, strict=True):
        try:
            key.verify(signature, pae(envelope.payloadType, payload))
        except InvalidSignature:
            continue
        exact = base64.b64encode(signature).decode() == named.sig and base64.b64encode(payload).decode() == envelope.payload
        if named.keyid == known and exact:
            return payload, known
    raise ArtefactError(f"{where} was not signed by the key in {key_name}, or was changed since")


def _private_key(pem: bytes, where: str) -> Ed25519PrivateKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError:
        raise missing_extra("cryptography", EXTRA) from None
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{where} is no private key that can be used: {error}", _HOW) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{where} is not an Ed25519 key", _HOW)
    return key


_HOW = "Make one with: openssl genpkey -algorithm ed25519 -out key.pem"


def _public_key(pem: bytes, where: str) -> Ed25519PublicKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ModuleNotFoundError:
        raise missing_extra("cryptography", EXTRA) from None
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{where} is no public key that can be used: {error}", "PEM: openssl pkey -in key.pem -pubout") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{where} is not an Ed25519 key", _HOW)
    return key


def _key_id(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
