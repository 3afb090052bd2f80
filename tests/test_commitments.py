"""Commitments: they bind to the byte, tell nothing of what is not opened, and signatures and time-stamps are others' too."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxaudit.answers import Access
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.audit.verifying.attesting import Binding, bind, commit_to, opening_to, show_rows
from onnxaudit.audit.verifying.verifying import VerifyOptions, verify_file
from onnxaudit.bundle import load
from onnxaudit.cli.commit import parse_rows
from onnxaudit.decode import canonical
from onnxaudit.errors import ArtefactError, OnnxauditError, UsageError
from onnxaudit.evidence.commitment import to_text
from onnxaudit.evidence.merkle import leaf_hash, node_hash, proof_of, root_by, root_of
from onnxaudit.evidence.signing import PAYLOAD_TYPE, pae
from tests.bundles import Recorded, rewrite, simulated_bundle

# The leaves, roots and proofs that Certificate Transparency's own implementations are tested with.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PROOFS = {
    (0, 8): (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ),
    (5, 8): (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ),
}


def test_the_tree_is_that_of_rfc_6962() -> None:
    hashes = [leaf_hash(leaf) for leaf in LEAVES]
    assert [root_of(hashes[:size]).hex() for size in range(9)] == ROOTS
    for (index, size), proof in PROOFS.items():
        assert tuple(node.hex() for node in proof_of(hashes[:size], index)) == proof


def test_proofs_lead_to_the_root_from_their_own_leaf_and_place_only() -> None:
    hashes = [leaf_hash(bytes([number])) for number in range(21)]
    for size in range(1, 22):
        tree = hashes[:size]
        root = root_of(tree)
        for index in range(size):
            proof = proof_of(tree, index)
            assert root_by(tree[index], index, size, proof) == root
            assert root_by(hashes[index - 1] if size > 1 else b"\0" * 32, index, size, proof) != root
            wrong = [*proof[:-1], bytes(32)] if proof else [bytes(32)]
            for other in (wrong, [*proof, bytes(32)], proof[:-1] if proof else [root]):
                assert root_by(tree[index], index, size, other) != root
            for place in (-1, size, *(i for i in range(size) if i != index)):
                assert root_by(tree[index], place, size, proof) != root
    left, right = hashes[:2]
    assert leaf_hash(left + right) != node_hash(left, right)  # an inner node cannot be shown as a leaf


def test_what_is_signed_is_the_published_pre_authentication_encoding() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and a check with its report and transcript."""
    place = tmp_path_factory.mktemp("evidence")
    bundle = simulated_bundle(19).save(place / "b.oab")
    report = check(bundle, Recorded(bundle, bundle.answers["victim"]), CheckOptions(evidence=place / "t.jsonl"), Silent())
    (place / "r.json").write_text(report.to_json() + "\n")
    bind(place / "b.oab", Binding(place / "b.commitment.json"))
    show_rows(place / "b.oab", [0, 3, 83], place / "b.opening.json", force=False)
    return place


def verify(path: Path, **options: Any) -> list[str]:
    return list(verify_file(path, VerifyOptions(lambda: path, **options)))


def test_a_commitment_is_to_one_file_to_the_byte(folder: Path, tmp_path: Path) -> None:
    for name in ("b.oab", "t.jsonl", "r.json"):
        path = tmp_path / f"{name}.commitment.json"
        bind(folder / name, Binding(path, "2026-01-31"))
        said = verify(path, of=folder / name)
        assert said[-1] == f"{name} is that {json.loads(path.read_text())['kind']}, to the byte"
        assert "its author dates it 2026-01-31; only a time-stamp proves a date" in said
        assert "give the file itself with --of" in verify(path)[-1]
        for other in {"b.oab", "t.jsonl", "r.json"} - {name}:
            with pytest.raises(ArtefactError, match="is not of"):
                verify(path, of=folder / other)
    changed = Path(shutil.copy(folder / "b.oab", tmp_path))
    rewrite(changed, lambda manifest, _: manifest.update(alpha=0.1))
    with pytest.raises(ArtefactError, match=r"is not of b\.oab: sha256 is"):
        verify(tmp_path / "b.oab.commitment.json", of=changed)


def test_the_same_bundle_gives_the_same_commitment_and_no_second_file_is_needed(folder: Path, tmp_path: Path) -> None:
    bind(folder / "b.oab", Binding(tmp_path / "c.json"))
    assert (tmp_path / "c.json").read_bytes() == (folder / "b.commitment.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
    with pytest.raises(UsageError, match=r"exists already.*--force"):
        bind(folder / "b.oab", Binding(tmp_path / "c.json"))
    bind(folder / "b.oab", Binding(tmp_path / "c.json", force=True))


def test_one_turned_bit_in_a_commitment_or_an_opening_is_found(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, options in (("b.commitment.json", {}), ("b.opening.json", {"commitment": folder / "b.commitment.json"})):
        whole, path = (folder / name).read_bytes(), tmp_path / name
        drawn = rng.permutation(len(whole))[:500].tolist()  # of the commitment, all
        for place in {0, len(whole) - 1, *drawn}:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(OnnxauditError) as caught:
                verify(path, **options)
            assert caught.value.exit_code == 3


def resealed(path: Path, change: Callable[[dict[str, Any]], object], target: Path) -> Path:
    value = json.loads(path.read_text())
    change(value)
    value["digest"] = ""
    value["digest"] = hashlib.sha256(canonical(value).encode()).hexdigest()
    target.write_text(canonical(value) + "\n")
    return target


def test_opened_queries_are_those_of_the_bundle(folder: Path) -> None:
    said = verify(folder / "b.opening.json", commitment=folder / "b.commitment.json")
    assert said[-1] == "3 of the 84 queries in b.commitment.json are opened, each with the victim's answer: 0, 3, 83"
    bundle = load(folder / "b.oab")
    for item in json.loads((folder / "b.opening.json").read_text())["opened"]:
        query = np.frombuffer(base64.b64decode(item["query"]["data"]), item["query"]["dtype"]).reshape(item["query"]["shape"])
        answer = np.frombuffer(base64.b64decode(item["answer"]["data"]), item["answer"]["dtype"])
        assert np.array_equal(query, bundle.queries[item["row"]])
        assert np.array_equal(answer, bundle.answers["victim"].dense()[item["row"]])


def swapped(what: str) -> Callable[[dict[str, Any]], object]:
    return lambda o: o["opened"][0][what].update(data=o["opened"][1][what]["data"])


FALSE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another query": (swapped("query"), "row 0 was not committed to"),
    "another answer": (swapped("answer"), "row 0 was not committed to"),
    "another salt": (lambda o: o["opened"][1].update(salt="00" * 32), "row 3 was not committed to"),
    "another row": (lambda o: o["opened"][1].update(row=4), "row 4 was not committed to"),
    "a row that is none": (lambda o: o["opened"][1].update(row=-1), "row -1 was not committed to"),
    "a proof cut short": (lambda o: o["opened"][2]["proof"].pop(), "row 83 was not committed to"),
    "a proof of words": (lambda o: o["opened"][2].update(proof=["x"]), "non-hexadecimal"),
    "a fewer": (lambda o: o.update(size=83), "is of another bundle than the commitment"),
    "another bundle": (lambda o: o.update(bundle="0" * 64), "is of another bundle than the commitment"),
    "nothing": (lambda o: o.update(opened=[]), "opens nothing"),
    "an array of words": (lambda o: o["opened"][0]["query"].update(dtype="|S1"), "its type or shape is unknown"),
    "a huge array": (lambda o: o["opened"][0]["query"].update(shape=[1 << 40]), "its type or shape is unknown"),
    "another shape": (lambda o: o["opened"][0]["query"].update(shape=[16]), "row 0 was not committed to"),
}


@pytest.mark.parametrize("what", FALSE)
def test_what_was_not_committed_to_is_refused(folder: Path, tmp_path: Path, what: str) -> None:
    change, words = FALSE[what]
    path = resealed(folder / "b.opening.json", change, tmp_path / "o.json")
    with pytest.raises(ArtefactError, match=words):
        verify(path, commitment=folder / "b.commitment.json")


def test_neither_commitment_nor_opening_lets_the_other_queries_be_guessed(folder: Path) -> None:
    """Whoever knows the query and the answer of a row that is not opened cannot tell from what is published that it is in."""
    bundle, opening = load(folder / "b.oab"), json.loads((folder / "b.opening.json").read_text())
    published = (folder / "b.commitment.json").read_text() + canonical(opening)

    def digest(array: Any) -> str:
        return hashlib.sha256(canonical([array.dtype.str, list(array.shape)]).encode() + array.tobytes()).hexdigest()

    query, answer = digest(bundle.queries[2]), digest(bundle.answers["victim"].dense()[2])
    salts = ["", *(item["salt"] for item in opening["opened"]), bundle.id, hashlib.sha256(bundle.id.encode()).hexdigest()]
    sibling = opening["opened"][1]["proof"][0]  # the hash of leaf 2, beside leaf 3: what a guess would be compared with
    for salt in salts:
        guess = leaf_hash(canonical([2, salt, query, answer]).encode()).hex()
        assert guess not in published
        assert guess != sibling
    right = opening_to(folder / "b.oab", [2]).opened[0]
    assert leaf_hash(canonical([2, right.salt, query, answer]).encode()).hex() == sibling
    assert len({item.salt for item in opening_to(folder / "b.oab", range(84)).opened}) == 84


def test_labels_are_opened_where_the_bundle_has_no_scores(tmp_path: Path) -> None:
    simulated_bundle(3, access=Access.LABEL).save(tmp_path / "b.oab")
    bind(tmp_path / "b.oab", Binding(tmp_path / "c.json"))
    show_rows(tmp_path / "b.oab", [7], tmp_path / "o.json", force=False)
    verify(tmp_path / "o.json", commitment=tmp_path / "c.json")
    assert json.loads((tmp_path / "o.json").read_text())["opened"][0]["answer"]["shape"] == []


def test_rows_are_written_as_ranges() -> None:
    assert parse_rows("0-2, 17,5") == [0, 1, 2, 5, 17]
    for text in ("", "x", "3-", "-3", "5-2", "1.5", "9999999999"):
        with pytest.raises(UsageError, match="names no queries"):
            parse_rows(text)


# Signatures and time-stamps, against OpenSSL as the other side.

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
CONFIG = """
[req]
distinguished_name = dn
prompt = no
[dn]
CN = Throw-away root
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[authority]
extendedKeyUsage = critical, timeStamping
[stamp]
serial = serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
ess_cert_id_alg = sha256
"""


def openssl(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of a signer and of a stranger, and a time-stamp authority with its root, all made by OpenSSL."""
    place = tmp_path_factory.mktemp("office")
    (place / "c.cnf").write_text(CONFIG)
    (place / "serial").write_text("01\n")
    for name in ("key", "stranger"):
        openssl("genpkey", "-algorithm", "ed25519", "-out", f"{name}.pem", cwd=place)
        openssl("pkey", "-in", f"{name}.pem", "-pubout", "-out", f"{name}.pub", cwd=place)
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "c.cnf")
    for name in ("root", "other"):
        openssl("req", "-x509", *new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-extensions", "root", cwd=place)
    openssl("req", *new, "-keyout", "tsa.key", "-out", "tsa.csr", "-subj", "/CN=Throw-away authority", cwd=place)
    signed = ("-in", "tsa.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-out", "tsa.pem")
    openssl("x509", "-req", *signed, "-extfile", "c.cnf", "-extensions", "authority", cwd=place)
    return place


def stamped(office: Path, request: Path, reply: Path) -> None:
    how = ("-signer", "tsa.pem", "-inkey", "tsa.key", "-config", "c.cnf", "-section", "stamp")
    openssl("ts", "-reply", "-queryfile", str(request), *how, "-out", str(reply), cwd=office)


@needs_openssl
def test_a_signature_is_by_that_key_over_that_commitment(folder: Path, office: Path, tmp_path: Path) -> None:
    bind(folder / "b.oab", Binding(tmp_path / "c.json", sign=office / "key.pem"))
    envelope = tmp_path / "c.dsse.json"
    said = verify(envelope, public_key=office / "key.pub", of=folder / "b.oab")
    assert "was signed by the holder of the key in key.pub" in said[1]
    assert said[-1] == "b.oab is that bundle, to the byte"
    verify(folder / "b.opening.json", commitment=envelope, public_key=office / "key.pub")
    with pytest.raises(ArtefactError, match=r"was not signed by the key in stranger\.pub"):
        verify(envelope, public_key=office / "stranger.pub")
    with pytest.raises(UsageError, match="--public-key"):
        verify(envelope)
    with pytest.raises(UsageError, match="no public key that can be used"):
        verify(envelope, public_key=office / "key.pem")
    rng = np.random.default_rng(0)
    whole = envelope.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        envelope.write_bytes(damaged)
        with pytest.raises(OnnxauditError) as caught:
            verify(envelope, public_key=office / "key.pub")
        assert caught.value.exit_code == 3


@needs_openssl
def test_openssl_finds_the_signature_good(folder: Path, office: Path, tmp_path: Path) -> None:
    bind(folder / "b.oab", Binding(tmp_path / "c.json", sign=office / "key.pem"))
    envelope = json.loads((tmp_path / "c.dsse.json").read_text())
    payload = base64.b64decode(envelope["payload"])
    assert payload == (tmp_path / "c.json").read_bytes()
    (tmp_path / "signed").write_bytes(b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    key = str(office / "key.pub")
    said = openssl("pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin", "-in", "signed", "-sigfile", "sig", cwd=tmp_path)
    assert "Signature Verified Successfully" in said


@needs_openssl
def test_keys_that_cannot_sign_are_the_user_s_mistake(folder: Path, office: Path, tmp_path: Path) -> None:
    openssl("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret", "-out", "locked.pem", cwd=tmp_path)
    for key, words in (
        (office / "key.pub", "no private key that can be used"),
        (office / "root.key", "is not an Ed25519 key"),
        (tmp_path / "locked.pem", "no private key that can be used"),
        (tmp_path / "none.pem", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=words):
            bind(folder / "b.oab", Binding(tmp_path / "c.json", sign=key))
        assert not (tmp_path / "c.json").exists()


@needs_openssl
def test_a_time_stamp_by_another_implementation_is_verified(folder: Path, office: Path, tmp_path: Path) -> None:
    request, reply = tmp_path / "c.tsq", tmp_path / "c.tsr"
    said = bind(folder / "b.oab", Binding(tmp_path / "c.json", sign=office / "key.pem", request=request))
    assert "curl -H 'Content-Type: application/timestamp-query' --data-binary @" in said[-1]
    asked = openssl("ts", "-query", "-in", str(request), "-text", cwd=office)
    assert "Hash Algorithm: sha256" in asked
    assert "Certificate required: yes" in asked
    stamped(office, request, reply)
    given = {"timestamp": reply, "public_key": office / "key.pub", "tsa_cert": office / "root.pem"}
    said = verify(tmp_path / "c.dsse.json", **given)
    assert said[-1].startswith("c.tsr: c.dsse.json existed on 20")
    assert said[-1].endswith(" UTC, says CN=Throw-away authority")
    with pytest.raises(ArtefactError, match="no time-stamp of this file by that authority: Mismatch between messages"):
        verify(tmp_path / "c.json", timestamp=reply, tsa_cert=office / "root.pem")
    with pytest.raises(ArtefactError, match="certificate verify error"):
        verify(tmp_path / "c.dsse.json", **{**given, "tsa_cert": office / "other.pem"})
    with pytest.raises(UsageError, match="holds no root certificate"):
        verify(tmp_path / "c.dsse.json", **{**given, "tsa_cert": office / "tsa.pem"})
    with pytest.raises(UsageError, match="--tsa-cert"):
        verify(tmp_path / "c.dsse.json", **{**given, "tsa_cert": None})
    with pytest.raises(UsageError, match="holds no certificates"):
        verify(tmp_path / "c.dsse.json", **{**given, "tsa_cert": office / "key.pub"})
    reply.write_bytes(request.read_bytes())
    with pytest.raises(ArtefactError, match="no time-stamp"):
        verify(tmp_path / "c.dsse.json", **given)


@needs_openssl
def test_a_time_stamp_is_for_any_file_and_old_ones_hold(folder: Path, office: Path, tmp_path: Path) -> None:
    """Any client may ask; that a bundle's own file was stamped is as good."""
    request, reply = tmp_path / "b.tsq", tmp_path / "b.tsr"
    openssl("ts", "-query", "-data", str(folder / "b.oab"), "-sha256", "-cert", "-out", str(request), cwd=office)
    stamped(office, request, reply)
    said = verify(folder / "b.oab", timestamp=reply, tsa_cert=office / "root.pem")
    assert "b.oab existed on" in said[-1]


def without(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command where a package is not installed."""
    code = f"import sys; sys.modules[{module!r}] = None; sys.argv[1:] = {list(arguments)!r}; "
    code += "from onnxaudit.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd)


def test_a_missing_package_is_named_with_what_brings_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("x")
    for module, option in (("cryptography", "--sign"), ("rfc3161_client", "--timestamp-request")):
        done = without(module, "commit", str(folder / "b.oab"), option, "key.pem", "--force", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert "not installed. Install it with: pip install 'onnxaudit[evidence]'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]
    assert without("cryptography", "commit", str(folder / "b.oab"), cwd=tmp_path).returncode == 0


def test_the_command_as_it_is_typed(folder: Path, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "onnxaudit", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    shutil.copy(folder / "b.oab", tmp_path)
    assert "b.commitment.json: commits to the bundle with sha256" in run("commit", "b.oab", "--date", "2026-01-31")
    assert "b.opening.json: shows 2 of 84 queries" in run("commit", "b.oab", "--open", "1,5")
    assert "2 of the 84 queries" in run("verify", "b.opening.json", "--commitment", "b.commitment.json")
    assert "--of means nothing for opened queries" in run("verify", "b.opening.json", "--of", "b.oab", code=2)
    for arguments, words in (
        (("b.oab", "--open", "84"), "there is no query 84"),
        (("b.oab", "--open", "1", "--date", "2026-01-31"), "Leave out --date"),
        (("b.oab", "--date", "yesterday", "-o", "c.json"), "is not a date"),
        (("b.oab",), "exists already"),
        (("b.commitment.json",), "commit takes a bundle, a transcript or a report"),
        (("none.oab",), "cannot be read"),
        (("b.oab", "-o", "no/c.json"), "cannot be written"),
    ):
        assert words in run("commit", *arguments, code=2)
    assert "--commitment" in run("verify", "b.opening.json", code=2)


def test_only_sound_files_are_committed_to(folder: Path, tmp_path: Path) -> None:
    for name in ("b.oab", "t.jsonl", "r.json"):
        path = Path(shutil.copy(folder / name, tmp_path))
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
        with pytest.raises(ArtefactError):
            commit_to(path)


def test_documents_that_say_more_are_refused(folder: Path, tmp_path: Path) -> None:
    for name, change in itertools.product(
        ("b.commitment.json", "b.opening.json"),
        (lambda v: v.update(more=1), lambda v: v.pop("bundle"), lambda v: v.update(schema=v["schema"] + "0")),
    ):
        path = resealed(folder / name, change, tmp_path / name)
        with pytest.raises(ArtefactError):
            verify(path, **({"commitment": folder / "b.commitment.json"} if "opening" in name else {}))
    commitment = commit_to(folder / "b.oab")
    assert to_text(dataclasses.replace(commitment, digest="x")) == to_text(commitment)
