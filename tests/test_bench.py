"""bench: answers remembered by model and query, scores, figures, and the whole sweep from the command line."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.benchmark import gram
from onnxaudit.audit.benchmark.figures import ALL, DEPLOYED, INDEPENDENT, SIBLING, _tpr, contests
from onnxaudit.audit.benchmark.measuring import Kept, cut_to, held
from onnxaudit.audit.benchmark.remembering import BATCH, Memory, digests_of, memory_name, recall
from onnxaudit.audit.checking import CheckOptions, check
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.errors import ArtefactError, SuspectError
from onnxaudit.evidence.metrics import tpr_at_fpr
from onnxaudit.registry import open_suspect, reduce_access
from onnxaudit.report.plots import pareto
from onnxaudit.schemes.detectors import DETECTORS
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.suspect import InputSpec, Queries, Suspect, SuspectCard, Target
from onnxaudit.zoo.manifest import ZooEntry
from tests.conftest import FIXTURES, ZOO

SPEC = InputSpec((28, 28, 1))
with np.load(FIXTURES / "fashion/test.npz") as shipped:
    IMAGES: NDArray[np.uint8] = shipped["x"].reshape(-1, 28, 28, 1)[:400]


def opened(name: str) -> Suspect:
    return open_suspect(Target(str(ZOO / name), SPEC, 10, "cpu", options={"threads": 1}))


def same(one: Answers, two: Answers) -> bool:
    assert one.scores is not None
    assert two.scores is not None
    return one.access == two.access and np.array_equal(one.classes, two.classes) and one.scores.tobytes() == two.scores.tobytes()


# ----------------------------------------------------------------------------------------------------------------- remembering


class Counted(Suspect):
    """Linear in the pixels; counts what it is asked. neighbours: an answer depends on the mean of its batch."""

    def __init__(self, *, neighbours: bool = False, fails_after: int | None = None) -> None:
        self.card = SuspectCard("counted", "test", SPEC, 3, sha256="0" * 64)
        self.asked: list[bytes] = []
        self._neighbours = neighbours
        self._fails_after = fails_after

    def _ask(self, queries: Queries) -> Answers:
        if self._fails_after is not None and len(self.asked) >= self._fails_after:
            raise SuspectError("it broke")
        self.asked += [query.tobytes() for query in queries]
        flat = queries.reshape(len(queries), -1).astype(np.float64) / 255
        scores = np.stack([flat[:, ::2].sum(1), flat[:, 1::2].sum(1), flat[:, ::3].sum(1)], axis=1)
        if self._neighbours:
            scores = scores - flat.mean()
        return Answers.from_scores(scores, Access.LOGITS)


def test_every_query_is_asked_once_also_over_several_runs(tmp_path: Path) -> None:
    suspect, path = Counted(), tmp_path / "model.safetensors"
    first = recall(path)
    trial = BATCH // 2  # of the first batch, asked once more among other neighbours
    assert (
        first.ask(suspect, [(IMAGES[:200], digests_of(IMAGES[:200])), (IMAGES[100:300], digests_of(IMAGES[100:300]))])
        == 300 + trial
    )
    first.save()
    assert len(set(suspect.asked)) == len({image.tobytes() for image in IMAGES[:300]})
    assert len(suspect.asked) == 3 * BATCH + BATCH  # batches are filled up, that of the trial too
    assert first.asked == 300 + trial
    again, other = recall(path), Counted()
    assert again.ask(other, [(IMAGES[:300], digests_of(IMAGES[:300]))]) == 0
    assert other.asked == []
    assert again.ask(other, [(IMAGES, digests_of(IMAGES))]) == 100
    assert set(other.asked).isdisjoint(image.tobytes() for image in IMAGES[:300])


@pytest.mark.parametrize("name", ["suspects/twin.onnx", "references/05-mlp-own.onnx", "suspects/int8-dynamic.onnx"])
def test_answers_are_the_same_to_the_last_bit_however_they_were_gathered(name: str, tmp_path: Path) -> None:
    digests = digests_of(IMAGES)
    with opened(name) as suspect:
        whole = Memory()
        whole.ask(suspect, [(IMAGES, digests)])
        for rows in (slice(300, 400), slice(0, 50), slice(40, 330)):  # three runs, each knowing what the others asked
            part = recall(tmp_path / "m.safetensors")
            part.ask(suspect, [(IMAGES[rows], digests[rows])])
            part.save()
        bare = suspect.ask(IMAGES)
    gathered = recall(tmp_path / "m.safetensors")
    assert same(gathered.said(digests), whole.said(digests))
    assert same(whole.said(digests), bare)
    assert gathered.asked == len(IMAGES) + 50  # half of the first batch, which was of 100


@pytest.mark.parametrize("level", [(Access.LABEL, 1), (Access.TOPK, 3), (Access.PROBS, 1)])
def test_less_access_is_remembered_as_it_was(level: tuple[Access, int], tmp_path: Path) -> None:
    path, digests = tmp_path / "m.safetensors", digests_of(IMAGES)
    with opened("suspects/twin.onnx") as suspect:
        reduced = reduce_access(suspect, *level)
        memory = recall(path)
        memory.ask(reduced, [(IMAGES, digests)])
        memory.save()
        bare = reduced.ask(IMAGES)
    said = recall(path).said(digests)
    assert (said.access, said.num_classes) == (bare.access, bare.num_classes)
    assert np.array_equal(said.classes, bare.classes)
    assert (said.scores is None) == (bare.scores is None)
    assert said.scores is None or np.array_equal(said.scores, np.asarray(bare.scores))


def test_a_model_whose_answers_depend_on_their_neighbours_is_asked_alone() -> None:
    memory, digests = Memory(), digests_of(IMAGES)
    memory.ask(Counted(neighbours=True), [(IMAGES, digests)])
    assert memory.alone
    assert memory.asked == BATCH + BATCH // 2 + len(IMAGES)
    one = Counted(neighbours=True).ask(IMAGES[7:8])
    assert same(memory.said(digests[7:8]), one)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "flipped":
        content[-1] ^= 1
    elif how == "emptied":
        content.clear()
    else:
        content = bytearray(b"something else entirely")
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "flipped", "emptied", "foreign"])
def test_a_damaged_file_is_made_anew(how: str, tmp_path: Path) -> None:
    path, digests = tmp_path / "m.safetensors", digests_of(IMAGES)
    memory = recall(path)
    memory.ask(Counted(), [(IMAGES, digests)])
    memory.save()
    damage(path, how)
    again = recall(path)
    assert again.rows == {}
    assert again.ask(Counted(), [(IMAGES, digests)]) == len(IMAGES) + BATCH // 2
    again.save()
    assert same(recall(path).said(digests), memory.said(digests))


def test_what_a_model_said_before_it_failed_is_kept(tmp_path: Path) -> None:
    memory, digests = recall(tmp_path / "m.safetensors"), digests_of(IMAGES)
    with pytest.raises(SuspectError):
        memory.ask(Counted(fails_after=3 * BATCH), [(IMAGES, digests)])
    memory.save()
    later, suspect = recall(tmp_path / "m.safetensors"), Counted()
    assert later.ask(suspect, [(IMAGES, digests)]) == len(IMAGES) - len(memory.rows) > 0
    whole = Memory()
    whole.ask(Counted(), [(IMAGES, digests)])
    assert same(later.said(digests), whole.said(digests))


def test_a_memory_belongs_to_one_version_of_what_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Counted().card
    served = dataclasses.replace(bare, runtime={"deployed": "jpeg:quality=50"})
    before = [memory_name(card) for card in (bare, served)]
    with monkeypatch.context() as patched:
        patched.setattr(importlib.metadata, "version", {"numpy": "2", "pillow": "0.0", "scipy": "1"}.__getitem__)
        names = [memory_name(card) for card in (bare, served)]
        assert (names[0] == before[0], names[1] == before[1]) == (True, False)
    monkeypatch.setattr("onnxaudit.audit.benchmark.remembering.__version__", "0.0.0")
    assert memory_name(bare) != before[0]


def test_a_memory_belongs_to_one_model_opened_one_way() -> None:
    card = Counted().card
    others = [
        dataclasses.replace(card, sha256="1" * 64),
        dataclasses.replace(card, input=InputSpec((28, 28, 1), scale=1.0)),
        dataclasses.replace(card, runtime={"deployed": "jpeg:quality=50"}),
        dataclasses.replace(card, runtime={"onnxruntime": "0"}),
    ]
    assert len({memory_name(item) for item in (card, *others)}) == 5
    assert memory_name(dataclasses.replace(card, source="elsewhere")) == memory_name(card)


# ---------------------------------------------------------------------------------------------------------- scores and figures


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(2, 6), st.sampled_from(Access))
def test_matrices_that_are_not_made_score_as_if_they_were(seed: int, n: int, classes: int, access: Access) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, classes)) * 3
    pair = [Answers.from_scores(item, Access.LOGITS) for item in (rows, rows + rng.normal(size=rows.shape) * rng.integers(0, 3))]
    victim, model = (answers.degrade(access, 2) for answers in pair)
    for name in ("correlation", "hard-correlation"):
        found = gram.scores(name, {}, victim, model)
        represent = REPRESENTATIONS[name].function
        own, other = represent(victim, {}), represent(model, {})
        for detector, score in found.items():
            assert score == pytest.approx(DETECTORS[detector].function(own, other), abs=1e-9)
    assert gram.scores("labels", {}, victim, model) == {}
    assert gram.scores("correlation", {"kernel": "rbf"}, victim, model) == {}


few = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=60)


@given(few, few)
def test_the_rate_at_five_percent_is_that_of_the_curve(high: list[float], low: list[float]) -> None:
    assert _tpr(np.array(high), np.array(low)) == pytest.approx(tpr_at_fpr(high, low))


def entry(kind: str, task: str = "independent", labels: str = "", deployed: tuple[str, ...] = ()) -> ZooEntry:
    return ZooEntry("model.onnx", kind, task, labels=labels, deployed=deployed)


def test_who_is_told_from_whom() -> None:
    jpeg = ("jpeg:quality=50",)
    zoo = [
        entry("positive", "same"),
        entry("positive", "same", deployed=jpeg),
        entry("positive", "transfer", labels="digits"),
        entry("negative"),
        *(entry("negative", deployed=(f"jpeg:quality={quality}",)) for quality in (50, 40, 30)),
        entry("negative", labels="digits"),
        entry("sibling"),
        entry("reference"),
    ]

    def sides(*, references: bool = False) -> dict[str, tuple[list[int], list[int]]]:
        found = contests(zoo, references=references)
        return {c.task: (np.flatnonzero(c.positives).tolist(), np.flatnonzero(c.negatives).tolist()) for c in found}

    assert sides() == {
        "same": ([0], [3]),
        "behind jpeg:quality=50": ([1], [3]),
        "behind jpeg:quality=50, both sides": ([1], [4]),
        "transfer (digits)": ([2], [7]),
        ALL: ([0, 1], [3]),
        INDEPENDENT: ([], [3]),
        DEPLOYED: ([], [4, 5, 6]),
        "independent (digits)": ([], [7]),
        SIBLING: ([0, 1], [8]),
    }
    assert sides(references=True)["same"] == ([0], [3, 9])
    assert sides(references=True)["transfer (digits)"] == ([2], [7])


def test_no_scheme_on_the_front_is_beaten_in_cost_and_gain() -> None:
    cost = {"cheap": 1.0, "same but dearer": 2.0, "better": 3.0, "worse": 4.0, "best": 5.0, "twin": 1.0}
    gain = {"cheap": 0.5, "same but dearer": 0.5, "better": 0.7, "worse": 0.6, "best": 0.9, "twin": 0.5}
    assert pareto(cost, gain) == ["cheap", "better", "best"]


def test_a_bundle_that_is_cut_judges_as_one_with_fewer_queries(crafted: QueryBundle) -> None:
    cut = cut_to(crafted, 40)
    assert [b - a for a, b in (scheme.rows for scheme in cut.manifest.schemes)] == [40, 40, 40]
    for scheme in cut.manifest.schemes:
        assert all(len(column) == 40 for column in cut.columns_of(scheme).values())
    with opened("suspects/prune-30.onnx") as suspect:
        report = check(cut, suspect, CheckOptions(), Silent(), 0.0)
    assert (report.finding, [scheme.queries for scheme in report.schemes]) == ("derived", [40, 40, 40])


def test_a_worker_that_outlives_a_run_never_judges_by_the_bundle_of_an_earlier_one(crafted: QueryBundle, tmp_path: Path) -> None:
    path = tmp_path / "bundle-seed0.oab"
    first = crafted.save(path)
    assert held(Kept(path, first.id)).bundle.id == first.id
    second = dataclasses.replace(crafted, manifest=dataclasses.replace(crafted.manifest, alpha=0.01)).save(path, force=True)
    assert held(Kept(path, second.id)).bundle.manifest.alpha == 0.01
    with pytest.raises(ArtefactError, match="was replaced while it was used"):
        held(Kept(path, "0" * 64))
