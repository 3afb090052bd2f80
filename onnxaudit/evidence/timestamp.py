"""Time-stamps of RFC 3161, on files: requests to be sent to an authority, and its replies. Nothing here opens a connection."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from onnxaudit.errors import ArtefactError, UsageError, missing_extra

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

EXTRA = "evidence"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a reply says. time: when the authority saw the digest. authority: the name in the certificate that signed it."""

    time: datetime
    authority: str


def request(data: bytes) -> bytes:
    """A request (DER) for a time-stamp of the SHA-256 of ``data``, with a random nonce, that asks for the certificate."""
    try:
        from rfc3161_client import HashAlgorithm, TimestampRequestBuilder
    except ModuleNotFoundError:
        raise missing_extra("rfc3161-client", EXTRA) from None
    return bytes(TimestampRequestBuilder(data, HashAlgorithm.SHA256).build().as_bytes())


def check_stamp(reply: bytes, data: bytes, certificates: bytes, where: str, trusted: str) -> Stamp:
    """What a reply (DER) says of ``data``. Raises ArtefactError unless it is a stamp of just this data, by that authority.

    certificates: PEM; those that sign themselves are trusted, others are links between them and the authority's own, which the
    reply brings. They have to be valid at the time of the stamp, not now. where, trusted: names of the files, for messages.
    """
    try:
        from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response
    except ModuleNotFoundError:
        raise missing_extra("rfc3161-client", EXTRA) from None
    roots, links = _certificates(certificates, trusted)
    try:
        response = decode_timestamp_response(reply)
        VerifierBuilder(roots=roots, intermediates=links).build().verify_message(response, data)
        info = response.tst_info
    except (VerificationError, ValueError) as error:
        raise ArtefactError(f"{where} is no time-stamp of this file by that authority: {_reason(error)}") from None
    return Stamp(info.gen_time, _signer(response.signed_data.certificates, response.signed_data.signer_infos) or trusted)


def _certificates(pem: bytes, where: str) -> tuple[list[Certificate], list[Certificate]]:
    """Certificates that sign themselves, and the others."""
    from cryptography.x509 import load_pem_x509_certificates

    try:
        found = load_pem_x509_certificates(pem)
    except ValueError as error:
        raise UsageError(f"{where} holds no certificates: {error}", "Give the authority's root certificate, PEM.") from None
    roots = [certificate for certificate in found if certificate.issuer == certificate.subject]
    if not roots:
        raise UsageError(f"{where} holds no root certificate, one that signs itself", "Add the authority's root to the file.")
    return roots, [certificate for certificate in found if certificate not in roots]


def _signer(certificates: set[bytes], signers: object) -> str:
    """The name of the certificate that signed, from those in the reply."""
    from cryptography.x509 import load_der_x509_certificate

    known = [load_der_x509_certificate(certificate) for certificate in certificates]
    for signer in signers if isinstance(signers, set) else ():
        for certificate in known:
            if (certificate.issuer, certificate.serial_number) == (signer.issuer, signer.serial_number):
                return certificate.subject.rfc4514_string()
    return ""


def _reason(error: Exception) -> str:
    """OpenSSL's reason out of its stack of errors, else the message."""
    text = " ".join(str(error).split())
    reasons = re.findall(r'reason: "([^"]+)"', text)
    return reasons[-1] if reasons else text[:200]
