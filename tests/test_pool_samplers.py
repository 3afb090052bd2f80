"""Queries that pools of models make: what each promises after rounding, and that models which had no part in it bear it out."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from onnxaudit.craft.data import Data
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.conferrable import sample_conferrable
from onnxaudit.craft.samplers.meta import sample_meta
from onnxaudit.craft.samplers.shared_errors import sample_shared_negative
from onnxaudit.craft.samplers.transferable import _copies, sample_transferable
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries
from onnxaudit.zoo.recipes import extract_labels
from onnxaudit.zoo.training import Recipe, build, fit, logits, to_pixels
from tests.pool import FIXTURES, Pool, as_victim, pool

SAMPLERS: dict[str, tuple[Callable[..., Sample], dict[str, Any]]] = {
    "shared-negative": (sample_shared_negative, {}),
    "conferrable": (sample_conferrable, {"iterations": 12}),
    "transferable": (sample_transferable, {"iterations": 10, "copies": 4}),
    "meta": (sample_meta, {"iterations": 15}),
    "metafinger": (sample_meta, {"variant": "metafinger"}),
}


def quiet(done: int) -> None:
    """Progress that nobody watches."""


def sampled(name: str, material: Material, n: int, seed: int = 0, **parameters: Any) -> Sample:
    sampler, settings = SAMPLERS[name]
    return sampler(material, n, np.random.default_rng(seed), quiet, **{**settings, **parameters})


@pytest.fixture(scope="module")
def models() -> Pool:
    return pool()


def labels(peers: Sequence[Victim], queries: Queries) -> NDArray[np.int64]:
    return np.stack([peer.answer(queries).argmax(1) for peer in peers])


def matching(peers: Sequence[Victim], victim: Victim, queries: Queries) -> float:
    """Mean share of queries to which the peers give the victim's label."""
    return float((labels(peers, queries) == victim.answer(queries).argmax(1)).mean())


def truths(data: Data, queries: Queries) -> list[int]:
    assert data.y is not None
    known = {image.tobytes(): int(label) for image, label in zip(data.x, data.y, strict=True)}
    return [known[query.tobytes()] for query in queries]


@pytest.mark.parametrize("name", SAMPLERS)
def test_queries_are_as_many_as_asked_at_most_and_the_same_each_time(models: Pool, name: str) -> None:
    state = torch.get_rng_state()
    first = sampled(name, models.material, 12)
    assert torch.equal(torch.get_rng_state(), state)
    assert 1 <= len(first.queries) <= 12
    assert len(first.queries) == 12 or first.notes
    assert first.queries.dtype == np.uint8
    assert first.queries.shape[1:] == (28, 28, 1)
    again = sampled(name, models.material, 12)
    assert np.array_equal(first.queries, again.queries)
    assert first.parameters == again.parameters
    other = sampled(name, models.material, 12, seed=1)
    assert first.queries.tobytes() != other.queries.tobytes()
    assert all(weight.grad is None for peer in (models.victim, *models.surrogates) for weight in peer.program.parameters())  # type: ignore[attr-defined]


def test_sac_w_asks_what_the_victim_and_every_surrogate_get_wrong(models: Pool) -> None:
    sample = sampled("shared-negative", models.material, 30)
    truth = truths(models.data, sample.queries)
    assert sample.columns["truth"].tolist() == truth
    assert sample.notes == ()
    assert len(sample.queries) == 30
    assert (labels([models.victim, *models.surrogates], sample.queries) != truth).all()
    # what it is for: derived models repeat these errors more often than independent ones make them
    derived, independent = (
        matching(g, models.victim, sample.queries) for g in (models.held_out_surrogates, models.held_out_references)
    )
    assert derived > independent + 0.1


def test_sac_w_says_how_far_it_had_to_relax(models: Pool) -> None:
    shared = sampled("shared-negative", models.material, 30).parameters["shared"]
    sample = sampled("shared-negative", models.material, shared + 20)
    wrong = (labels(models.surrogates, sample.queries) != sample.columns["truth"]).sum(axis=0)
    assert (wrong[:shared] == 3).all()
    assert (np.diff(wrong) <= 0).all()
    two, one = int((wrong == 2).sum()), int((wrong == 1).sum())
    fill = ", ".join(f"{count} by {k}" for k, count in ((2, two), (1, one)) if count)
    assert sample.notes == (f"only {shared} errors are shared by all 3 surrogates; others fill up: {fill}",)
    everything = sampled("shared-negative", models.material, 1000)
    assert "no other error of the victim is shared by a surrogate" in everything.notes[1]
    right = sampled("shared-negative", models.material, 1000, keep_if_references="right")
    assert ((labels(models.references, right.queries) == right.columns["truth"]).mean(axis=0) > 0.5).all()
    assert 2 <= len(right.queries) < len(everything.queries)


def adversarial(models: Pool, n: int, radius: float) -> Queries:
    """Plain PGD on the victim alone, where it succeeds after rounding."""
    x = models.victim.pixels(models.data.x[:n])
    y = models.victim.predict(x).argmax(1)
    points = x.clone()
    for _ in range(20):
        points.requires_grad_(True)
        loss = nn.functional.cross_entropy(models.victim.logits(points), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        points = (points.detach() + radius / 8 * gradient.sign()).clamp(x - radius, x + radius).clamp(0, 1)
    queries = models.material.space.queries(points)
    found: Queries = queries[models.victim.answer(queries).argmax(1) != y.numpy()]
    return found


@pytest.fixture(scope="module")
def conferrable(models: Pool) -> Sample:
    return sampled("conferrable", models.material, 20, iterations=50)


def test_conferrable_examples_fool_the_victim_within_the_radius(models: Pool, conferrable: Sample) -> None:
    """The property that is claimed, recomputed from the answers to the stored queries."""
    queries = conferrable.queries
    said = models.victim.answer(queries).argmax(1)
    similar, different = ((labels(g, queries) == said).mean(axis=0) for g in (models.surrogates, models.references))
    scores = similar * (1 - different)
    assert (np.diff(scores) <= 1e-6).all()
    assert conferrable.parameters["conferrable"] == int((scores >= 0.85).sum()) > 0
    assert conferrable.parameters["conferrability"] == pytest.approx(scores.mean(), abs=1e-4)
    distance = np.abs(queries.astype(int)[:, None] - models.data.x.astype(int)[None]).max(axis=(2, 3, 4))
    start = distance.argmin(axis=1)
    assert (distance.min(axis=1) <= np.ceil(0.15 * 255)).all()
    assert models.data.y is not None
    assert (said != models.data.y[start]).all()
    assert "less conferrable fill up" in conferrable.notes[0]


def test_conferrable_examples_confer_to_models_that_had_no_part_in_them(models: Pool, conferrable: Sample) -> None:
    plain = adversarial(models, 80, 0.15)
    assert len(plain) > 40

    def gap(queries: Queries) -> float:
        derived = matching(models.held_out_surrogates, models.victim, queries)
        return derived - matching(models.held_out_references, models.victim, queries)

    assert gap(conferrable.queries) > gap(plain) + 0.05


def test_the_conferrable_loss_is_that_of_the_paper(models: Pool) -> None:
    """Against the formula, written out in NumPy for one point."""
    from onnxaudit.craft.samplers.conferrable import _Ensemble

    x = models.victim.pixels(models.data.x[:3])
    before = torch.tensor([[0.7] + [0.3 / 9] * 9] * 3)
    ensemble = _Ensemble(models.victim, tuple(models.surrogates), tuple(models.references), 2.0, 3.0, 0.5)
    loss = ensemble.loss(x, before, models.surrogates, models.references[:2])

    def softmax(z: NDArray[Any]) -> NDArray[Any]:
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return np.asarray(e / e.sum(axis=-1, keepdims=True))

    def probabilities(peer: Victim) -> NDArray[Any]:
        return softmax(peer.answer(models.data.x[:3]).astype(np.float64))

    v = probabilities(models.victim)
    s, r = (np.mean([probabilities(p) for p in g], axis=0) for g in (models.surrogates, models.references[:2]))
    conferred = softmax(s * (1 - r)).max(axis=1)
    expected = 2 * -np.log(conferred) - 3 * -(before.numpy() * np.log(v)).sum(1) + 0.5 * -(v * np.log(s)).sum(1)
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-3)


def test_transferable_examples_are_shared_by_copies_of_the_victim(models: Pool) -> None:
    sample = sampled("transferable", models.material, 30, iterations=15, copies=10)
    queries = sample.queries
    assert len(queries) >= 15
    assert sample.parameters["reconstructed"] is True
    said = models.victim.answer(queries).argmax(1)
    copies, notes = _copies(models.material, 10, 0.2, np.random.default_rng(0))
    assert notes == ()
    x = models.victim.pixels(queries)
    with torch.no_grad():
        shared = np.mean([copy(x).argmax(1).numpy() == said for copy in copies], axis=0)
        natural = models.victim.pixels(models.data.x)
        alike = [(copy(natural).argmax(1) == models.victim.predict(natural).argmax(1)).float().mean() for copy in copies]
    assert (shared >= 0.9 - 1e-9).all()
    assert 0.8 < min(alike) <= max(alike) < 1  # disturbed, and no more than derived models are
    # and a fine-tuned model, which is what they stand for, shares them where independent ones do not
    tuned, independent = (
        matching(g, models.victim, queries) for g in (models.held_out_surrogates[2:], models.held_out_references)
    )
    assert tuned > 0.8
    assert independent < 0.6


def test_transferable_examples_of_a_victim_without_weights(models: Pool, tmp_path: Any) -> None:
    """A frozen program has nothing to change; the share is that of copies with noise on their inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(models.victim.program, torch.zeros(2, 1, 28, 28))
        frozen = as_victim_of(torch.jit.freeze(traced.eval()))
    sample = sampled("transferable", dataclasses.replace(models.material, victim=frozen), 10)
    assert sample.notes[0] == "the victim's weights cannot be changed, so its copies have noise on their inputs instead"
    assert len(sample.queries) >= 5
    with pytest.raises(UsageError, match="none of 40 adversarial examples is shared by the victim's copies"):
        sampled("transferable", models.material, 10, radius=0.0)
    kept = sampled("transferable", models.material, 20, unlike_references=True).queries
    agree = (labels(models.references, kept) == models.victim.answer(kept).argmax(1)).mean(axis=0)
    assert (agree < 0.5).all()


def as_victim_of(program: Any) -> Victim:
    return Victim(program, InputSpec((28, 28, 1)), torch.device("cpu"), "test", "", "test").probed()


def outputs(peers: Sequence[Victim], queries: Queries) -> NDArray[np.float64]:
    """Probabilities of all queries in a row, (peers, n * C)."""
    return np.stack([torch.from_numpy(peer.answer(queries)).double().softmax(1).numpy().ravel() for peer in peers])


def separation(models: Pool, queries: Queries) -> float:
    """How many pooled standard deviations further from the victim held-out independent models are than held-out derived ones."""
    victim = outputs([models.victim], queries)
    derived, independent = (
        np.abs(outputs(g, queries) - victim).mean(axis=1) for g in (models.held_out_surrogates, models.held_out_references)
    )
    return float((independent.mean() - derived.mean()) / np.sqrt((independent.var() + derived.var()) / 2))


@pytest.mark.parametrize(("variant", "start"), [("verifier", "random"), ("verifier", "training"), ("metafinger", "training")])
def test_trained_queries_tell_held_out_models_apart_better_than_untrained(models: Pool, variant: str, start: str) -> None:
    space, rng = models.material.space, np.random.default_rng(0)
    untrained = space.queries(space.uniform(30, rng)) if start == "random" else models.data.x[:30]
    sample = sampled("meta", models.material, 30, variant=variant, start=start, iterations=60)
    assert separation(models, sample.queries) > separation(models, untrained) + 0.8
    if variant == "verifier":
        assert sample.parameters["accuracy"] == 1.0


def test_metafinger_puts_first_what_every_positive_and_no_negative_says(models: Pool) -> None:
    sample = sampled("metafinger", models.material, 30)
    kept = sample.parameters["kept"]
    assert 0 < kept <= 30
    said = labels([models.victim, *models.surrogates], sample.queries)
    assert (said[:, :kept] == said[0, :kept]).all()
    assert (labels(models.references, sample.queries)[:, :kept] != said[0, :kept]).all()
    assert sample.notes == (
        (f"{kept} of 30 queries tell all positive from all negative models; the others follow",) if kept < 30 else ()
    )


def test_what_is_missing_is_said(models: Pool) -> None:
    alone = Material(models.victim, models.data)
    for name in ("shared-negative", "conferrable", "meta"):
        with pytest.raises(UsageError, match=r"this scheme needs surrogates.*--surrogates DIR, or --train-surrogates"):
            sampled(name, alone, 5)
    half = dataclasses.replace(alone, surrogates=models.surrogates)
    for name in ("conferrable", "meta"):
        with pytest.raises(UsageError, match="this scheme needs references"):
            sampled(name, half, 5)
    with pytest.raises(UsageError, match="this scheme needs references"):
        sampled("shared-negative", half, 5, keep_if_references="right")
    with pytest.raises(UsageError, match=r"variant='x' is not known\. Use verifier or metafinger"):
        sampled("meta", models.material, 5, variant="x")
    with pytest.raises(UsageError, match=r"start='x' is not known\. Use random or training"):
        sampled("meta", models.material, 5, start="x")
    with pytest.raises(UsageError, match="keep_if_references='x' is not known"):
        sampled("shared-negative", models.material, 5, keep_if_references="x")
    unlabelled = dataclasses.replace(models.material, data=Data(models.data.x, None, (), ""))
    for name in ("shared-negative", "conferrable"):
        with pytest.raises(UsageError, match="needs labelled data"):
            sampled(name, unlabelled, 5)
    assert models.data.y is not None
    perfect = Data(models.data.x, models.victim.answer(models.data.x).argmax(1), (), "")
    with pytest.raises(UsageError, match="the victim makes 0 errors on 1000 inputs"):
        sampled("shared-negative", dataclasses.replace(models.material, data=perfect), 5)


def test_peers_without_gradients_are_named() -> None:
    from onnxaudit.craft.pools.peers import open_peers

    models = pool()
    files = sorted((FIXTURES / "zoo/references").glob("*.onnx"))[:2]
    plain = open_peers(files, models.victim.spec, 10, "cpu")
    material = dataclasses.replace(models.material, references=plain)
    for name in ("conferrable", "meta"):
        with pytest.raises(UsageError, match=r"0\d-\w+-own.onnx gives no gradients"):
            sampled(name, material, 4)
    assert len(sampled("shared-negative", material, 4, keep_if_references="right").queries) == 4  # labels are enough


@pytest.fixture(scope="module")
def tabular() -> Material:
    """Vectors of 64 values: a victim, two surrogates, two references."""
    loaded = load_digits()
    x, y = loaded.data.astype(np.float32) / 4 - 1, loaded.target.astype(np.int64)
    recipe, spec = Recipe("mlp", width=0.3, epochs=8, batch=32), InputSpec((64,), "NC")
    pixels, target = to_pixels(x), torch.from_numpy(y)

    def independent(start: int, seed: int) -> nn.Module:
        seeded = dataclasses.replace(recipe, seed=seed)
        return fit(build(seeded, (64,), 10), pixels[start : start + 400], target[start : start + 400], seeded)

    victim = independent(0, 1)
    said = logits(victim, pixels[400:800])
    surrogates = [extract_labels(said, pixels[400:800], dataclasses.replace(recipe, seed=s), (64,)) for s in (2, 3)]
    return Material(
        as_victim(victim, spec),
        Data(x[1000:], y[1000:], (), "vectors"),
        [as_victim(m, spec) for m in surrogates],
        [as_victim(independent(s, s), spec) for s in (400, 600)],
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_vectors_stay_in_the_range_of_the_data(tabular: Material, name: str) -> None:
    assert tabular.data is not None
    sample = sampled(name, tabular, 12)
    assert sample.queries.dtype == np.float32
    assert sample.queries.shape[1:] == (64,)
    assert 2 <= len(sample.queries) <= 12
    assert (sample.queries >= tabular.data.x.min(0) - 1e-6).all()
    assert (sample.queries <= tabular.data.x.max(0) + 1e-6).all()
