"""Fitting learned detectors to the victim, surrogates and references that never calibrate, and freezing them (torch)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from onnxaudit.errors import UsageError

Vectors: TypeAlias = NDArray[np.float64]

FEWEST = 2
"""Surrogates, and references, that there must be: from one model of a kind nothing can be learned about the kind."""
OPSET, IR_VERSION = 13, 8
"""Old enough for any runtime, new enough for all that is written here."""


@dataclass(frozen=True, slots=True, eq=False)
class Frozen:
    """A fitted detector. graph: a network as ONNX, (rows, features) to (rows, outputs), or None; parameters: of its function."""

    graph: bytes | None
    parameters: Mapping[str, float | int | bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def perceptron(sizes: Sequence[int], slope: float, rng: np.random.Generator, *, end: bool) -> nn.Sequential:
    """Dense layers of these sizes, each but the last (and with ``end`` that too) followed by a ReLU, leaky if slope > 0.

    Weights are uniform in +-1 / sqrt(inputs), drawn from rng; torch's own generator is left alone.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        bound = inputs**-0.5
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.from_numpy(rng.uniform(-bound, bound, parameter.shape)))
        layers += [layer, nn.LeakyReLU(slope) if slope else nn.ReLU()]
    return nn.Sequential(*(layers if end else layers[:-1]))


def frozen_network(network: nn.Sequential, mean: Vectors | None = None, scale: float = 1.0) -> bytes:
    """Dense layers and (leaky) ReLUs as ONNX bytes; the first layer also does (x - mean) / scale.

    Written node by node, so that it needs no exporter and the same weights give the same bytes.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors, last, width, features = [], [], "x", 0, 0
    for index, layer in enumerate(network):
        name = f"x{index + 1}"
        if isinstance(layer, nn.Linear):
            weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
            if not features:
                weight = weight / scale
                bias = bias if mean is None else bias - weight @ mean
            width, features = len(bias), features or weight.shape[1]
            for part, values in (("weight", weight), ("bias", bias)):
                tensors.append(numpy_helper.from_array(values.astype(np.float32), f"{part}{index}"))
            nodes.append(helper.make_node("Gemm", [last, f"weight{index}", f"bias{index}"], [name], transB=1))
        elif isinstance(layer, nn.LeakyReLU):
            nodes.append(helper.make_node("LeakyRelu", [last], [name], alpha=layer.negative_slope))
        else:
            nodes.append(helper.make_node("Relu", [last], [name]))
        last = name
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", features])
    result = helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", width])
    graph = helper.make_graph(nodes, "detector", [given], [result], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString(deterministic=True))


def check_pools(surrogates: Vectors, references: Vectors) -> None:
    """Raise UsageError for too few models, or for answers that are not numbers."""
    for what, models in (("surrogates", surrogates), ("references that do not calibrate", references)):
        if len(models) < FEWEST:
            raise UsageError(f"a learned detector needs {FEWEST} {what}, there are {len(models)}", "Give or train more.")
        if not np.isfinite(models).all():
            raise UsageError(f"what is compared is not defined for some of the {what}", "Take another representation.")


def spread(table: NDArray[Any]) -> float:
    """The root mean square of a table (rows, features) less the mean of its rows; 1 if all rows are the same.

    One number for all features: dividing each by its own would blow up those that hardly vary in a few models.
    """
    centred = table - table.mean(axis=0)
    size = float(np.sqrt(np.square(centred).mean()))
    return size if size > 1e-9 else 1.0


def fit_verifier(
    victim: Vectors,
    surrogates: Vectors,
    references: Vectors,
    rng: np.random.Generator,
    *,
    hidden: int = 128,
    lr: float = 1e-3,
    epochs: int = 200,
    weight_decay: float = 0.1,
    folds: int = 4,
) -> Frozen:
    """MetaV's verifier: a perceptron of two layers on all outputs of a model, above 0 for derived ones (Pan et al. 2022).

    victim: R; surrogates, references: (models, *R). Minimises the cross-entropy of victim and surrogates against references,
    each kind with the same weight, in ``epochs`` steps of AdamW on all models. A note says how well the same training does on
    models that it was not shown, ``folds`` parts of the pools in turn; with fewer than two models a fold and kind there is none.
    Raises UsageError for fewer than two surrogates or references.
    """
    check_pools(surrogates, references)
    models = np.concatenate([kind.reshape(len(kind), -1) for kind in (victim[None], surrogates, references)])
    derived = torch.arange(len(models)) <= len(surrogates)
    mean, scale = models.mean(axis=0), spread(models)
    x = torch.from_numpy((models - mean) / scale).float()
    network = perceptron([x.shape[1], hidden, 1], 0.01, rng, end=False)
    folds = min(folds, len(surrogates) // 2, len(references) // 2)
    notes: tuple[str, ...] = ()
    if folds >= 2:
        part = torch.from_numpy(
            np.concatenate([rng.permutation(size) % folds for size in (1 + len(surrogates), len(references))])
        )
        held = torch.zeros(len(x))
        for aside in (part == fold for fold in range(folds)):
            trial = _trained(copy.deepcopy(network), x[~aside], derived[~aside], epochs, lr, weight_decay)
            held[aside] = trial(x[aside])[:, 0].detach()
        above = held[derived][:, None] > held[~derived]
        notes = (
            f"the verifier puts a derived model above a reference in {above.float().mean():.0%} of pairs that it was not shown",
        )
    return Frozen(frozen_network(_trained(network, x, derived, epochs, lr, weight_decay), mean, scale), {}, notes)


def _trained(network: nn.Sequential, x: Tensor, derived: Tensor, epochs: int, lr: float, weight_decay: float) -> nn.Sequential:
    """Full-batch AdamW steps, in place."""
    optimiser = torch.optim.AdamW(network.parameters(), lr, weight_decay=weight_decay)
    for _ in range(epochs):
        optimiser.zero_grad()
        balanced_loss(network(x)[:, 0], derived).backward()
        optimiser.step()
    return network


def balanced_loss(logits: Tensor, derived: Tensor) -> Tensor:
    """Cross-entropy of logits (n,) with derived (n,) bool, averaged over each kind, then over the two."""
    losses = functional.binary_cross_entropy_with_logits(logits, derived.float(), reduction="none")
    return (losses[derived].mean() + losses[~derived].mean()) / 2


def fit_logistic(
    victim: Vectors, surrogates: Vectors, references: Vectors, rng: np.random.Generator, *, strength: float = 1.0
) -> Frozen:
    """A logistic regression on how near each entry is to the victim's, with an L2 penalty (C = ``strength``).

    victim: R; surrogates, references: (models, *R). Near: equal or not where all entries are whole numbers, as classes are; else
    minus the absolute difference, divided by its spread over all models. Both kinds of models weigh the same. The victim, nearest
    to itself, counts as derived. Raises UsageError for fewer than two surrogates or references.
    """
    from sklearn.linear_model import LogisticRegression

    check_pools(surrogates, references)
    models = np.concatenate([victim[None], surrogates, references])
    exact = bool((models == np.rint(models)).all())
    near = (models == victim).astype(np.float64) if exact else -np.abs(models - victim)
    near = near.reshape(len(models), -1)
    scale = 1.0 if exact else spread(near)
    derived = np.arange(len(models)) <= len(surrogates)
    fitted = LogisticRegression(C=strength, class_weight="balanced", max_iter=10_000).fit(near / scale, derived)
    layer = nn.utils.skip_init(nn.Linear, near.shape[1], 1, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fitted.coef_))
        layer.bias.copy_(torch.from_numpy(fitted.intercept_))
    return Frozen(frozen_network(nn.Sequential(layer), None, scale), {"exact": exact})


def fit_welch(victim: Vectors, surrogates: Vectors, references: Vectors, rng: np.random.Generator) -> Frozen:
    """Mean, variance and number of the references' similarities to the victim by view (FUAP section 5.1).

    victim: (views, features); references: (models, views, features). surrogates are not used. Raises UsageError for fewer than
    two references.
    """
    if len(references) < FEWEST:
        raise UsageError(f"this test needs {FEWEST} references that do not calibrate, there are {len(references)}", "Give more.")
    norms = np.linalg.norm(references, axis=-1) * np.linalg.norm(victim, axis=-1)
    similarity = (references * victim).sum(axis=-1) / np.maximum(norms, 1e-12)
    return Frozen(
        None, {"mean": float(similarity.mean()), "variance": float(similarity.var(ddof=1)), "count": int(similarity.size)}
    )
