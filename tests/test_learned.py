"""Learned detectors: what is fitted, frozen and run again, and networks that a bundle must not get past its reader."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy import stats

from onnxaudit.answers import Access, Answers
from onnxaudit.craft.data import load_data
from onnxaudit.craft.learning.contrastive import contrastive_loss, fit_contrastive
from onnxaudit.craft.learning.fitting import Frozen, Vectors, fit_logistic, fit_verifier, fit_welch, frozen_network, perceptron
from onnxaudit.craft.sample import Material, Sample
from onnxaudit.craft.samplers.universal import sample_uap
from onnxaudit.craft.victim import open_victim
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.schemes.detectors import cosine
from onnxaudit.schemes.learned import contrastive, logistic, verifier, welch
from onnxaudit.schemes.representations import views
from onnxaudit.suspect import InputSpec, Target
from onnxaudit_adapters.graph import MAX_BYTES, open_graph

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SPEC = InputSpec((28, 28, 1))
FITS: list[Callable[..., Frozen]] = [fit_contrastive, fit_verifier, fit_logistic, fit_welch]


def quiet(done: int) -> None:
    """Progress that nobody watches."""


def made_up(derived: int = 8, independent: int = 12, seed: int = 0) -> tuple[Vectors, Vectors, Vectors]:
    """A victim of 4 views of 30 numbers, derived models, which keep half of what is its own, and models that have none of it."""
    rng = np.random.default_rng(seed)
    task, own = rng.normal(size=(2, 4, 30))

    def models(count: int, share: float) -> Vectors:
        return np.asarray(task + share * own + rng.normal(size=(count, 4, 30)))

    return task + own, models(derived, 0.5), models(independent, 0.0)


# the loss


def test_the_losses_of_three_views_worked_out_by_hand() -> None:
    encoded = torch.tensor([[2.0, 0.0], [5.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    alike = math.log(1 + math.exp(-1))  # -log e / (e + 1): one mate at cosine 1, one other at cosine 0
    assert float(contrastive_loss(encoded, labels, 1.0)) == pytest.approx(2 * alike)  # the third has no mate
    with_itself = 2 * math.log(1 + 1 / (2 * math.e)) + math.log(1 + 2 / math.e)
    assert float(contrastive_loss(encoded, labels, 1.0, "code")) == pytest.approx(with_itself / 3)


def test_the_loss_is_equation_7_of_fuap_term_by_term() -> None:
    rng = np.random.default_rng(1)
    z, y, temperature = rng.normal(size=(9, 4)), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1]), 0.2
    total = 0.0
    for i in range(9):
        others = [v for v in range(9) if v != i]
        mates = [p for p in others if y[p] == y[i]]
        similarity = {v: z[i] @ z[v] / np.linalg.norm(z[i]) / np.linalg.norm(z[v]) for v in others}
        below = sum(math.exp(similarity[v] / temperature) for v in others)
        total -= sum(math.log(math.exp(similarity[p] / temperature) / below) for p in mates) / len(mates)
    assert float(contrastive_loss(torch.from_numpy(z), torch.from_numpy(y), temperature)) == pytest.approx(total)


def test_a_view_that_is_encoded_as_zero_has_a_loss_and_a_gradient() -> None:
    encoded = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    for form in ("paper", "code"):
        (gradient,) = torch.autograd.grad(contrastive_loss(encoded, torch.tensor([0, 0, 1]), 0.2, form), encoded)
        assert torch.isfinite(gradient).all()


# freezing


@pytest.mark.parametrize(("slope", "end"), [(0.0, True), (0.01, False), (0.2, True)])
def test_a_frozen_network_says_what_torch_says(slope: float, end: bool) -> None:
    rng = np.random.default_rng(2)
    network = perceptron([17, 9, 5, 2], slope, rng, end=end)
    mean, scale = rng.normal(size=17) * 3, 2.5
    x = rng.normal(size=(40, 17)) * 4
    data = frozen_network(network, mean, scale)
    expected = network(torch.from_numpy((x - mean) / scale).float()).detach().numpy()
    found = open_graph(data)(x.astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    plain = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(plain.run(None, {"x": x.astype(np.float32)})[0], found, rtol=1e-5, atol=1e-5)


def test_rows_do_not_depend_on_each_other_and_other_widths_are_refused() -> None:
    graph = open_graph(frozen_network(perceptron([6, 4, 3], 0.01, np.random.default_rng(3), end=False)))
    rows = np.random.default_rng(4).normal(size=(300, 6)).astype(np.float32)
    together = graph(rows)
    np.testing.assert_allclose(np.concatenate([graph(rows[i : i + 1]) for i in range(0, 300, 50)]), together[::50], rtol=1e-6)
    assert (graph(rows) == together).all()
    for wrong in (rows[:, :5], rows[0]):
        with pytest.raises(ValueError, match="rows of 6"):
            graph(wrong)


@pytest.mark.parametrize("fit", FITS)
def test_a_seed_makes_the_same_detector_and_no_global_state(fit: Callable[..., Frozen]) -> None:
    before = torch.get_rng_state()
    quick = {"epochs": 20} if fit in (fit_contrastive, fit_verifier) else {}
    one, two = (fit(*made_up(), np.random.default_rng(7), **quick) for _ in range(2))
    assert one.graph == two.graph
    assert one.parameters == two.parameters
    assert (torch.get_rng_state() == before).all()
    if quick:
        assert fit(*made_up(), np.random.default_rng(8), **quick).graph != one.graph


# what is learned


def held_out(
    fit: Callable[..., Frozen], detector: Callable[..., float], **parameters: Any
) -> tuple[list[float], list[float], float]:
    """Scores of made-up derived and independent models that were not learned from, and of the victim itself."""
    victim, derived, independent = made_up(24, 32)
    frozen = fit(victim, derived[:12], independent[:16], np.random.default_rng(0), **parameters)
    told = dict(frozen.parameters) | ({"graph": open_graph(frozen.graph)} if frozen.graph else {})
    scores = [[detector(victim, model, **told) for model in models] for models in (derived[12:], independent[16:])]
    return scores[0], scores[1], detector(victim, victim, **told)


def auc(derived: list[float], independent: list[float]) -> float:
    above = np.array(derived)[:, None] - np.array(independent)[None]
    return float(((above > 0) + (above == 0) / 2).mean())


@pytest.mark.parametrize(
    ("fit", "detector", "parameters"),
    [
        (fit_contrastive, contrastive, {}),
        (fit_contrastive, contrastive, {"supcon": "code"}),
        (fit_contrastive, contrastive, {"batch": 32, "epochs": 50}),
        (fit_verifier, verifier, {}),
        (fit_logistic, logistic, {}),
        (fit_welch, welch, {}),
    ],
)
def test_models_that_were_not_learned_from_are_told_apart(
    fit: Callable[..., Frozen], detector: Callable[..., float], parameters: dict[str, Any]
) -> None:
    derived, independent, itself = held_out(fit, detector, **parameters)
    assert auc(derived, independent) > 0.9
    assert itself > np.median(derived)


@pytest.mark.parametrize(
    ("fit", "detector"), [(fit_contrastive, contrastive), (fit_verifier, verifier), (fit_logistic, logistic)]
)
def test_the_unit_and_the_zero_of_what_is_compared_do_not_matter(
    fit: Callable[..., Frozen], detector: Callable[..., float]
) -> None:
    scores = []
    for unit, zero in ((1.0, 0.0), (10.0, -30.0)):
        models = [unit * part + zero for part in made_up()]
        frozen = fit(*models, np.random.default_rng(0), **({} if fit is fit_logistic else {"epochs": 5}))
        assert frozen.graph is not None
        told: dict[str, Any] = {"graph": open_graph(frozen.graph), **frozen.parameters}
        scores.append([detector(models[0], model, **told) for model in (*models[1][:3], *models[2][:3])])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3, atol=2e-3)


def test_the_encoder_gives_the_victim_itself_a_cosine_of_one() -> None:
    assert held_out(fit_contrastive, contrastive)[2] == pytest.approx(1.0, abs=1e-6)


def test_the_verifier_says_how_it_does_on_models_that_it_was_not_shown() -> None:
    victim, derived, independent = made_up(12, 12)
    alike = made_up(0, 24, seed=5)[2]

    def share(one: Vectors, other: Vectors) -> int:
        (note,) = fit_verifier(victim, one, other, np.random.default_rng(0), epochs=50).notes
        return int(note.split("%")[0].split()[-1])

    assert share(derived, independent) >= 85
    assert 25 <= share(alike[:12], alike[12:]) <= 75  # nothing to be learned
    assert fit_verifier(victim, derived[:3], independent[:3], np.random.default_rng(0)).notes == ()  # too few to hold any out


@pytest.mark.parametrize("whole", [True, False])
def test_the_logistic_regression_is_where_its_penalised_loss_is_flat(whole: bool) -> None:
    """Where |w|^2 / 2 + C sum of weighted losses is least, w is C sum of weight (y - p) x, and the sum of weight (y - p) is 0."""
    victim, derived, independent = made_up(6, 12)
    if whole:
        victim, derived, independent = (np.rint(2 * models) for models in (victim, derived, independent))
    strength = 0.5
    frozen = fit_logistic(victim, derived, independent, np.random.default_rng(0), strength=strength)
    assert frozen.parameters == {"exact": whole}
    assert frozen.graph is not None
    graph = open_graph(frozen.graph)
    models = np.concatenate([victim[None], derived, independent])
    near = ((models == victim) if whole else -np.abs(models - victim)).astype(np.float64).reshape(len(models), -1)
    bias = float(graph(np.zeros((1, near.shape[1]), np.float32))[0, 0])
    weight = graph(np.eye(near.shape[1], dtype=np.float32))[:, 0].astype(np.float64) - bias
    scale = 1.0 if whole else float(np.sqrt(np.square(near - near.mean(0)).mean()))
    y = np.arange(len(models)) < 7
    balance = np.where(y, len(y) / 2 / y.sum(), len(y) / 2 / (~y).sum())
    pull = balance * (y - 1 / (1 + np.exp(-(near @ weight + bias))))
    np.testing.assert_allclose(weight * scale, strength * pull @ near / scale, atol=2e-3)
    assert abs(pull.sum()) < 2e-3
    said = [logistic(victim, model, graph=graph, exact=whole) for model in models]
    np.testing.assert_allclose(said, near @ weight + bias, rtol=1e-4, atol=1e-4)


def test_welch_is_scipys_statistic_over_views() -> None:
    victim, derived, independent = made_up()
    frozen: dict[str, Any] = dict(fit_welch(victim, derived, independent, np.random.default_rng(0)).parameters)

    def by_view(models: Vectors) -> NDArray[np.float64]:
        dots = np.einsum("mvf,vf->mv", models, victim)
        return np.asarray(dots / np.linalg.norm(models, axis=2) / np.linalg.norm(victim, axis=1))

    for model in derived[:3]:
        expected = stats.ttest_ind(by_view(model[None])[0], by_view(independent).ravel(), equal_var=False).statistic
        assert welch(victim, model, **frozen) == pytest.approx(expected, rel=1e-5)
    assert np.isnan(welch(victim[:1], derived[0][:1], **frozen))  # one view has no variance
    assert welch(victim, victim, **frozen) > 10


@pytest.mark.parametrize("fit", FITS)
def test_too_few_models_to_learn_from(fit: Callable[..., Frozen]) -> None:
    victim, derived, independent = made_up()
    with pytest.raises(UsageError, match="references that do not calibrate, there are 1"):
        fit(victim, derived, independent[:1], np.random.default_rng(0))
    if fit is fit_welch:
        assert fit(victim, derived[:0], independent, np.random.default_rng(0)).graph is None
    else:
        with pytest.raises(UsageError, match="2 surrogates, there are 1"):
            fit(victim, derived[:1], independent, np.random.default_rng(0))


@pytest.mark.parametrize("fit", FITS[:3])
def test_models_that_all_say_the_same_and_answers_that_are_no_numbers(fit: Callable[..., Frozen]) -> None:
    same = np.ones((4, 30))
    frozen = fit(same, np.ones((3, 4, 30)), np.ones((3, 4, 30)), np.random.default_rng(0))
    assert frozen.graph is not None
    assert np.isfinite(open_graph(frozen.graph)(np.ones((1, 30 if fit is fit_contrastive else 120), np.float32))).all()
    victim, derived, independent = made_up()
    derived[0, 0, 0] = np.nan
    with pytest.raises(UsageError, match="not defined for some of the surrogates"):
        fit(victim, derived, independent, np.random.default_rng(0))


def test_a_loss_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="supcon='simclr' is not known"):
        fit_contrastive(*made_up(), np.random.default_rng(0), supcon="simclr")


def zoo_views(folder: str, material: Material, sample: Sample) -> dict[str, Vectors]:
    """What the ONNX models of a folder of the zoo say to a sample of views, by name."""
    told = {}
    for file in sorted((FIXTURES / "zoo" / folder).glob("*.onnx")):
        with open_suspect(Target(str(file), SPEC, 10, "cpu")) as suspect:
            told[file.name] = views(suspect.ask(sample.queries).degrade(Access.PROBS), sample.columns)
    return told


def test_learned_detectors_tell_models_of_the_zoo_apart_at_least_as_well_as_the_plain_cosine() -> None:
    """Three times half of the derived models and a third of the references teach, and the others and the negatives judge."""
    victim = open_victim(FIXTURES / "zoo/victim.pt", SPEC, device="cpu").probed()
    material = Material(victim, load_data(FIXTURES / "fashion/train.npz"))
    sample = sample_uap(material, 200, np.random.default_rng(0), quiet, algorithm="gradient", xi=2.5)
    itself = views(Answers.from_scores(victim.answer(sample.queries)).degrade(Access.PROBS), sample.columns)
    suspects, references = (
        zoo_views("suspects", material, sample),
        np.stack([*zoo_views("references", material, sample).values()]),
    )
    innocent = ("other", "strong", "twin", "weak", "hardened")
    derived = np.stack([told for name, told in suspects.items() if not name.startswith(innocent)])
    negatives = [told for name, told in suspects.items() if name.startswith(innocent)]
    rng = np.random.default_rng(1)
    found: dict[str, list[float]] = {}
    learned: list[tuple[Callable[..., Frozen], Callable[..., float], dict[str, Any]]] = [
        (fit_contrastive, contrastive, {}),
        (fit_verifier, verifier, {"folds": 0}),
        (fit_logistic, logistic, {}),
    ]
    for _ in range(3):
        shown, teach = rng.permutation(len(derived)) % 2 == 0, rng.permutation(len(references)) % 3 == 0
        judges = derived[~shown], [*references[~teach], *negatives]
        found.setdefault("cosine", []).append(auc(*([cosine(itself, model) for model in kind] for kind in judges)))
        for fit, detector, parameters in learned:
            frozen = fit(itself, derived[shown], references[teach], np.random.default_rng(0), **parameters)
            assert frozen.graph is not None
            told: dict[str, Any] = {"graph": open_graph(frozen.graph), **frozen.parameters}
            scores = ([detector(itself, model, **told) for model in kind] for kind in judges)
            found.setdefault(detector.__name__, []).append(auc(*scores))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    assert min(means, key=lambda name: means[name]) == "cosine", means


# networks of strangers


def gemm(*shapes: tuple[int, ...], **attributes: Any) -> tuple[list[Any], list[Any]]:
    """A chain of dense layers with weights of these shapes."""
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), f"w{i}") for i, shape in enumerate(shapes)]
    return [
        helper.make_node("Gemm", [f"y{i}" if i else "x", f"w{i}"], [f"y{i + 1}"], **attributes) for i in range(len(shapes))
    ], tensors


def model(
    nodes: list[Any], tensors: list[Any], features: int = 3, kind: int = TensorProto.FLOAT, outputs: tuple[str, ...] = ()
) -> onnx.ModelProto:
    names = outputs or (nodes[-1].output[0],)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, ["n", features])],
        [helper.make_tensor_value_info(name, kind, None) for name in names],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def external() -> onnx.ModelProto:
    made = model(*gemm((3, 2)))
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    return made


def branching() -> onnx.ModelProto:
    nodes, tensors = gemm((3, 2))
    inner = helper.make_graph([], "inner", [], [])
    return model([*nodes, helper.make_node("If", ["y1"], ["z"], then_branch=inner, else_branch=inner)], tensors)


def with_function() -> onnx.ModelProto:
    made = model(*gemm((3, 2)))
    made.functions.append(helper.make_function("own", "Relu", ["a"], ["b"], [], [helper.make_opsetid("", 13)]))
    return made


def foreign() -> onnx.ModelProto:
    nodes, tensors = gemm((3, 2))
    nodes[0].domain = "com.microsoft"
    made = model(nodes, tensors)
    made.opset_import.add(domain="com.microsoft", version=1)
    return made


def sparse() -> onnx.ModelProto:
    made = model(*gemm((3, 2)))
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])
    made.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [2])
    )
    return made


def outer_product() -> onnx.ModelProto:
    """Ten kilobytes that the runtime would fold into an outer product of any size while loading."""
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for shape, name in (((2000, 1), "a"), ((1, 2000), "b"))]
    return model([helper.make_node("Gemm", ["a", "b"], ["y"])], tensors, features=1)


def claimed(dims: list[int]) -> onnx.ModelProto:
    """Weights that are fewer than they say."""
    made = model(*gemm((3, 2)))
    del made.graph.initializer[0].dims[:]
    made.graph.initializer[0].dims.extend(dims)
    return made


def typed(kind: int, dtype: str) -> onnx.ModelProto:
    nodes = [helper.make_node("Gemm", ["x", "w0"], ["y"])]
    return model(nodes, [numpy_helper.from_array(np.ones((3, 2), dtype), "w0")], kind=kind)


def extra(**change: Any) -> onnx.ModelProto:
    return model(*gemm((3, 2)), **change)


HOSTILE: dict[str, Callable[[], onnx.ModelProto | bytes]] = {
    "not ONNX": lambda: b"MZ this is something else",
    "nothing": lambda: b"",
    "cut short": lambda: model(*gemm((3, 2))).SerializeToString()[:40],
    "too large": lambda: bytes(MAX_BYTES + 1),
    "weights in another file": external,
    "a branch": branching,
    "a function": with_function,
    "an operator of another domain": foreign,
    "sparse weights": sparse,
    "an outer product": outer_product,
    "fewer weights than said": lambda: claimed([3000, 2000]),
    "negative sizes": lambda: claimed([-3, -2]),
    "layers that do not fit": lambda: model(*gemm((3, 2), (4, 2))),
    "features that do not fit": lambda: extra(features=5),
    "rows that are mixed": lambda: model(*gemm((2, 2), transA=1), features=2),
    "another operator": lambda: model([helper.make_node("Softmax", ["x"], ["y"])], []),
    "no layer": lambda: model([helper.make_node("Relu", ["x"], ["y"])], []),
    "a strange attribute": lambda: model(*gemm((3, 2), broadcast=1)),
    "two outputs": lambda: extra(outputs=("y1", "x")),
    "an output from the middle": lambda: model(*gemm((3, 2), (2, 2)), outputs=("y1",)),
    "float64": lambda: typed(TensorProto.DOUBLE, "float64"),
    "too many layers": lambda: model(*gemm(*[(3, 3)] * 65)),
    "a bias for each row": lambda: model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for shape, name in (((3, 2), "w"), ((2, 2), "b"))],
    ),
    "a weight in the input's place": lambda: model(
        [helper.make_node("Gemm", ["x", "w"], ["y"])],
        [numpy_helper.from_array(np.ones((3, 3), np.float32), name) for name in ("x", "w")],
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_networks_that_are_no_detectors_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(np.ones((3, 2), np.float32).tobytes())  # what "weights in another file" asks for
    made = HOSTILE[name]()
    with pytest.raises(ArtefactError, match="network is refused"):
        open_graph(made if isinstance(made, bytes) else made.SerializeToString())


def test_what_hostile_networks_are_made_of_is_run_when_it_is_harmless() -> None:
    graph = open_graph(model(*gemm((3, 2), (2, 4))).SerializeToString())
    assert graph(np.ones((5, 3), np.float32)).tolist() == [[6.0] * 4] * 5
