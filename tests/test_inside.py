"""Looking inside of programs: layers and gradients are the same in every format, and what schemes make of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxaudit.craft.insight import INSIGHTS, Program, encode, insight, path_terms, program_of, sketched
from onnxaudit.craft.layers import features, look_inside
from onnxaudit.errors import SuspectError, UsageError
from onnxaudit.registry import open_suspect
from onnxaudit.schemes.catalogue import CATALOGUE
from onnxaudit.schemes.compositions import keywords, problem
from onnxaudit.schemes.detectors import cosine
from onnxaudit.schemes.inside import gradient_field, layer_distance, layer_means
from onnxaudit.schemes.representations import REPRESENTATIONS
from onnxaudit.suspect import InputSpec, Queries, Target
from onnxaudit.zoo.training import Recipe, build
from tests.inside_models import CPU, FASHION, Residual, as_victim
from tests.models import SHAPE, SPEC, colour_queries, save_exported, save_onnx, save_torchscript


def formats(module: nn.Module, folder: Path) -> dict[str, Callable[[Tensor], Any]]:
    """One network as a module, TorchScript and exported programs, as they come from files."""
    script = torch.jit.load(str(save_torchscript(folder / "m.pt", module))).eval()
    torch.jit.save(torch.jit.script(module), str(folder / "s.pt"))
    exported = torch.export.load(str(save_exported(folder / "m.pt2", module=module)))
    return {
        "module": module,
        "traced": script,
        "scripted": torch.jit.load(str(folder / "s.pt")).eval(),
        "frozen": torch.jit.freeze(torch.jit.load(str(folder / "m.pt")).eval()),
        "exported": exported.module(check_guards=False),
        "decomposed": exported.run_decompositions().module(check_guards=False),
    }


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[Tensor], Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return formats(Residual(), tmp_path_factory.mktemp("formats"))


@pytest.mark.parametrize("kind", ["module", "traced", "scripted", "frozen", "exported", "decomposed"])
def test_layers_are_the_same_in_every_format(programs: Mapping[str, Callable[[Tensor], Any]], kind: str) -> None:
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    layers, hinges = Residual().by_hand(x)
    seen = look_inside(programs[kind])(x)
    for found, expected in zip((*seen.layers, *seen.hinges), (*layers, *hinges), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.output, layers[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features(programs[kind], x), layers[-2], rtol=1e-4, atol=1e-5)
    for found, expected in zip(look_inside(programs[kind])(x).layers, layers, strict=True):
        (slope,) = torch.autograd.grad(found.square().sum(), x, retain_graph=True)
        (known,) = torch.autograd.grad(expected.square().sum(), x, retain_graph=True)
        torch.testing.assert_close(slope, known, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("arch", ["lenet", "vgg", "resnet", "mobilenet", "densenet", "mlp"])
def test_rewritten_graphs_show_what_is_seen_while_modules_run(arch: str) -> None:
    module = build(Recipe(arch, seed=3), FASHION, 10).eval()
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, x)
    seen, known = look_inside(traced)(x), look_inside(module)(x)
    assert len(known.layers) == sum(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules()) + len(known.hinges)
    for found, expected in zip((*seen.layers, *seen.hinges), (*known.layers, *known.hinges), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_channels_come_first_and_forward_hooks_say_the_same() -> None:
    network = nn.Sequential(nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 2)).eval()
    x = torch.rand(4, 6, 7)
    hooked: list[Tensor] = []
    for part in network:
        part.register_forward_hook(lambda _module, _inputs, output: hooked.append(output))
    found = look_inside(network)(x).layers
    assert [tuple(layer.shape) for layer in found] == [(4, 5, 6), (4, 5, 6), (4, 2, 6)]
    for layer, output in zip(found, hooked, strict=True):
        torch.testing.assert_close(layer, output.movedim(-1, 1))


class Branching(nn.Module):
    """Uses one layer or another, by what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.one(x) if x.sum() > 0 else self.two(x)
        return scores


def test_what_cannot_be_seen_is_said() -> None:
    with pytest.raises(UsageError, match="no layer"):
        look_inside(lambda x: x * 2)(torch.rand(2, 3))
    with pytest.raises(UsageError, match="decides while it runs"):
        look_inside(torch.jit.script(Branching().eval()))
    with pytest.raises(UsageError, match="no linear layer"):
        features(nn.Conv2d(3, 2, 8), torch.rand(2, 3, 8, 8))


SPECS = [
    InputSpec((8, 8, 3)),
    InputSpec((8, 8, 3), layout="NHWC", scale=1.0, channels="BGR"),
    InputSpec((8, 8, 3), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), channels="BGR"),
    InputSpec((8, 8, 3), dtype="float16", mean=(0.5,), std=(0.5,)),
    InputSpec((8, 8, 3), layout="NHWC", dtype="uint8"),
    InputSpec((13, 5, 3), dtype="float64"),
    InputSpec((4, 4, 3), std=(0.5,)),
    InputSpec((192,), layout="NC", mean=(0.1,)),
]


@pytest.mark.parametrize("spec", SPECS)
def test_differentiable_encoding_is_the_encoding(spec: InputSpec) -> None:
    queries = colour_queries()
    expected: NDArray[Any] = spec.encode(queries)
    found = encode(spec, torch.tensor(queries, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3 if spec.dtype == "float16" else 1e-5, atol=1e-4)
    assert found.dtype == (expected.dtype if spec.dtype != "uint8" else np.float32)


def test_grey_queries_are_encoded_for_a_colour_model() -> None:
    grey = colour_queries()[..., :1]
    found = encode(SPECS[2], torch.tensor(grey, dtype=torch.float32)).numpy()
    expected: NDArray[Any] = SPECS[2].encode(grey)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def gif(module: Callable[[Tensor], Any], spec: InputSpec, queries: Queries, **parameters: Any) -> NDArray[np.float64]:
    """The gradient field of a program at queries."""
    seen = insight("gradients", Program(module, spec, CPU, 4), queries, **parameters)
    return gradient_field(seen, {}, **parameters)


def test_gradient_field_is_cumulative_integrated_gradients() -> None:
    from captum.attr import IntegratedGradients

    network = Residual().double()
    x = torch.rand(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    own = network(x).argmax(1)
    expected = IntegratedGradients(network).attribute(x, target=own, n_steps=50, method="gausslegendre")
    field = gradient_field(path_terms(network, x, torch.zeros_like(x[:1]), 50).numpy(), {})
    np.testing.assert_allclose(field[:, -1], expected.flatten(1).detach().numpy(), atol=1e-5)
    # a part of the sum: the same gradients written out
    nodes, weights = np.polynomial.legendre.leggauss(50)
    total = torch.zeros_like(x)
    for node, weight in zip(nodes[:20], weights[:20], strict=True):
        point = ((node + 1) / 2 * x).requires_grad_(True)
        (slope,) = torch.autograd.grad(network(point).gather(1, own[:, None]).sum(), point)
        total += weight / 2 * slope
    np.testing.assert_allclose(field[:, 19], (x * total).flatten(1).numpy(), atol=1e-9)


def test_gradient_field_is_taken_in_normalised_space_where_the_baseline_says_so() -> None:
    from captum.attr import IntegratedGradients

    network, spec, queries = Residual(), InputSpec(SHAPE, mean=(0.5,), std=(0.25,)), colour_queries(6)
    x = torch.from_numpy(spec.encode(queries).astype(np.float32))
    own = network(x).argmax(1)
    known = (
        IntegratedGradients(network).attribute(x, target=own, n_steps=30, method="gausslegendre").permute(0, 2, 3, 1).flatten(1)
    )
    found = gif(network, spec, queries, nodes=30, baseline=0.5, score="logit")[:, -1]
    ratio = (found * known.numpy()).sum(1) / np.square(known.numpy()).sum(1)
    np.testing.assert_allclose(found, ratio[:, None] * known.numpy(), atol=2e-3)  # kept in half precision, scaled by query


class Ending(nn.Module):
    """A network behind what changes nothing but how its answers look."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), self.network(x).softmax(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network in four files, another in a fifth."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "pt": save_torchscript(folder / "copy.pt", Residual()),
        "pt2": save_exported(folder / "copy.pt2", module=Residual()),
        "fixed": save_exported(folder / "fixed.pt2", batch=7, module=Residual()),
        "softmax": save_torchscript(folder / "softmax.pt", Ending(Residual()).eval()),
        "other": save_torchscript(folder / "other.pt", Residual(seed=1)),
    }


@pytest.mark.parametrize("name", ["pt", "pt2", "fixed", "softmax", "other"])
def test_suspects_show_what_the_victim_shows_if_they_are_copies(files: Mapping[str, Path], name: str) -> None:
    queries = colour_queries(20)
    victim = program_of(as_victim(Residual(), SPEC))
    with open_suspect(Target(str(files[name]), SPEC, 4)) as suspect:
        fields = suspect.inside("gradients", queries)
        layers = suspect.inside("layers", queries)
    assert fields is not None
    assert layers is not None
    assert fields.shape == (20, 10, 192)
    score = cosine(gradient_field(insight("gradients", victim, queries), {}), gradient_field(fields, {}))
    assert score < 0.8 if name == "other" else score > 0.9999
    same = np.allclose(layers, insight("layers", victim, queries), rtol=1e-3, atol=1e-4)
    assert same == (name != "other")
    with pytest.raises(SuspectError, match="closed"):
        suspect.inside("layers", queries)


def test_models_that_show_nothing_say_so(tmp_path: Path) -> None:
    queries = colour_queries(4)
    with open_suspect(Target(str(save_onnx(tmp_path / "m.onnx")), SPEC, 4)) as suspect:
        assert suspect.inside("gradients", queries) is None
    blind = nn.Sequential(nn.Flatten(), nn.Softmax(1))  # no layer; nor is there a gradient behind a label
    with open_suspect(Target(str(save_torchscript(tmp_path / "b.pt", blind)), SPEC, 4)) as suspect:
        assert suspect.inside("layers", queries) is None

    class Labels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).argmax(1)

    with open_suspect(Target(str(save_torchscript(tmp_path / "l.pt", Labels())), SPEC, 4)) as suspect:
        assert suspect.inside("gradients", queries) is None


class InPlace(nn.Module):
    """Normalises what it is given where it lies, or beside it."""

    def __init__(self, size: int, beside: bool) -> None:
        super().__init__()
        self.beside = beside
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.hidden, self.last = nn.Linear(size, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone() if self.beside else x
        x.sub_(0.5)
        x[:, 0] = 0.1
        scores: Tensor = self.last(self.hidden(x.flatten(1)).relu())
        return scores


@pytest.mark.parametrize("kind", ["gradients", "layers"])
@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("compiled", [torch.jit.script, torch.jit.trace])
def test_programs_that_work_in_place_show_what_others_do(
    kind: str, vectors: bool, compiled: Callable[..., Any], tmp_path: Path
) -> None:
    queries: Queries = colour_queries(5)
    queries = np.random.default_rng(0).random((5, 8), np.float32) if vectors else queries
    spec, example = (InputSpec((8,), layout="NC"), torch.rand(2, 8)) if vectors else (SPEC, torch.rand(2, 3, 8, 8))
    seen = []
    for beside in (False, True):
        module, path = InPlace(8 if vectors else 192, beside).eval(), tmp_path / f"{beside}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(compiled(module, example) if compiled is torch.jit.trace else compiled(module), str(path))
        with open_suspect(Target(str(path), spec, 4)) as suspect:
            seen.append(suspect.inside(kind, queries))
    there, beside_it = seen
    assert there is not None
    assert beside_it is not None
    np.testing.assert_allclose(there, beside_it, rtol=1e-3, atol=1e-4)


class Spoilt(nn.Module):
    """Its answers can be had, its gradients cannot: what they need is overwritten, or they are not finite."""

    def __init__(self, overwrite: bool) -> None:
        super().__init__()
        self.overwrite, self.dense = overwrite, nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.dense(x.flatten(1))
        return said.exp().mul_(2) if self.overwrite else said + (said - said).sqrt()


@pytest.mark.parametrize(("overwrite", "why"), [(True, "cannot be differentiated: .*inplace"), (False, "not finite")])
def test_programs_whose_gradients_fail_do_not_show_them(overwrite: bool, why: str, tmp_path: Path) -> None:
    queries, module = colour_queries(5), Spoilt(overwrite).eval()
    with pytest.raises(UsageError, match=why) as refused:
        insight("gradients", Program(module, SPEC, CPU, 4), queries)
    assert "\n" not in str(refused.value)
    with open_suspect(Target(str(save_torchscript(tmp_path / "m.pt", module)), SPEC, 4)) as suspect:
        assert suspect.inside("gradients", queries) is None
        assert suspect.ask(queries).scores is not None


def test_sketches_keep_cosines_and_sums() -> None:
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(40, 5000, generator=rng)
    b = a + 0.7 * torch.randn(40, 5000, generator=rng)
    exact, kept = torch.cosine_similarity(a, b), torch.cosine_similarity(sketched(a, 1024), sketched(b, 1024))
    assert float((exact - kept).abs().max()) < 0.1
    assert float((exact - kept).mean().abs()) < 0.01
    torch.testing.assert_close(sketched(a + b, 64), sketched(a, 64) + sketched(b, 64), rtol=1e-3, atol=1e-3)
    assert sketched(a, 0) is a
    assert sketched(a, 5000) is a
    # the places must be the same on every machine: bundles outlive libraries
    assert sketched(torch.arange(8.0), 3).tolist() == [-6.0, -3.0, 1.0]


def test_insights_take_the_parameters_of_the_representations_that_want_them() -> None:
    wanting = {name: part for name, part in REPRESENTATIONS.items() if part.inside}
    assert sorted(part.inside for part in wanting.values()) == sorted(INSIGHTS)
    for part in wanting.values():
        assert keywords(part.function) == keywords(INSIGHTS[part.inside])
    for name in ("modelgif", "deepjudge-wb"):
        scheme = CATALOGUE[name]
        assert problem(scheme.sampler, scheme.representation, scheme.detector) is None


def fuzzed(module: nn.Module, sizes: list[int], layer: int, n: int = 12) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    columns = {
        "layer": np.full(n, layer),
        "neuron": np.arange(n) % sizes[layer],
        "sizes": np.repeat([sizes], n, axis=0),
    }
    return insight("layers", Program(module, SPEC, CPU), colour_queries(n)), columns


def test_layer_distances_are_deepjudges() -> None:
    sizes = [6, 6, 6, 6, 10, 10, 10, 4]
    (one, columns), (two, _) = fuzzed(Residual(), sizes, 4), fuzzed(Residual(seed=1), sizes, 4)
    a, b = layer_means(one, columns), layer_means(two, columns)
    x = torch.from_numpy(SPEC.encode(colour_queries(12)).astype(np.float32))
    phi, psi = (module.by_hand(x)[0][4].detach().numpy() for module in (Residual(), Residual(seed=1)))
    own = columns["neuron"]
    rows = np.arange(12)
    np.testing.assert_allclose(a[:, 1:], phi, rtol=1e-4, atol=1e-5)
    active = [(v - v.min(1, keepdims=True)) / (np.ptp(v, axis=1)[:, None] + 1e-6) > 0.5 for v in (phi, psi)]
    expected = {
        "nod": np.abs(phi[rows, own] - psi[rows, own]).mean(),
        "lod": np.sqrt(((phi - psi) ** 2).sum(1)).mean(),
        "nad": (active[0][rows, own] != active[1][rows, own]).mean(),
        "lad": (active[0] != active[1]).sum(1).mean(),
    }
    for metric, value in expected.items():
        assert layer_distance(a, b, metric=metric) == pytest.approx(-value, rel=1e-4)
        assert layer_distance(a, a, metric=metric) == 0
    assert layer_distance(a, a) == 0 > layer_distance(a, b)
    with pytest.raises(ValueError, match="unknown metric"):
        layer_distance(a, b, metric="best")


def test_other_layers_cannot_be_compared() -> None:
    seen, columns = fuzzed(Residual(), [6, 6, 6, 6, 10, 10, 10, 5], 1)
    with pytest.raises(ValueError, match="layers differ"):
        layer_means(seen, columns)
    _, mixed = fuzzed(Residual(), [6, 6, 6, 6, 10, 10, 10, 4], 1)
    with pytest.raises(ValueError, match="several layers"):
        layer_means(seen, {**mixed, "layer": np.arange(12) % 2})
