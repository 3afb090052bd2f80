"""FUAP's encoder: fingerprints of derived models together, those of independent ones away (Peng et al. 2022) (torch)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from onnxaudit.craft.learning.fitting import Frozen, Vectors, check_pools, frozen_network, perceptron, spread
from onnxaudit.errors import UsageError

HIDDEN, ENCODED = 50, 20
"""Sizes of the authors' encoder. A third layer of theirs, of four numbers, is never trained nor used."""


def fit_contrastive(
    victim: Vectors,
    surrogates: Vectors,
    references: Vectors,
    rng: np.random.Generator,
    *,
    temperature: float = 0.2,
    lr: float = 5e-4,
    epochs: int = 50,
    batch: int = 512,
    supcon: str = "paper",
) -> Frozen:
    """An encoder of views, fitted so that those of victim and surrogates are alike and unlike those of references.

    victim: (views, features), where any table's rows are its views, and any other R is one; surrogates, references: (models, *R).
    supcon: the loss, "paper" (FUAP eq. 7) or the authors' "code". temperature, lr, batch: the authors' (the paper prints no
    temperature). epochs: the authors have 10 of some 2,000 views, which are as many steps as 50 of fewer than 512.
    Raises UsageError for fewer than two surrogates or references.
    """
    check_pools(surrogates, references)
    if supcon not in ("paper", "code"):
        raise UsageError(f"supcon={supcon!r} is not known", "Use paper or code.")
    width = victim.shape[-1] if victim.ndim == 2 else victim.size
    derived = np.concatenate([victim[None], surrogates]).reshape(-1, width)
    independent = references.reshape(-1, width)
    rows = np.concatenate([derived, independent])
    mean, scale = rows.mean(axis=0), spread(rows)
    x = torch.from_numpy((rows - mean) / scale).float()
    labels = torch.from_numpy(np.repeat([0, 1], [len(derived), len(independent)]))
    network = perceptron([width, HIDDEN, ENCODED], 0.0, rng, end=True)
    train_encoder(network, x, labels, rng, temperature=temperature, lr=lr, epochs=epochs, batch=batch, supcon=supcon)
    return Frozen(frozen_network(network, mean, scale))


def train_encoder(
    network: nn.Module,
    x: Tensor,
    labels: Tensor,
    rng: np.random.Generator,
    *,
    temperature: float,
    lr: float,
    epochs: int,
    batch: int,
    supcon: str,
) -> None:
    """Adam on ``contrastive_loss`` over random batches of views x (n, features) with labels (n,)."""
    optimiser = torch.optim.Adam(network.parameters(), lr)
    for _ in range(epochs):
        for part in torch.from_numpy(rng.permutation(len(x))).split(batch):
            optimiser.zero_grad()
            contrastive_loss(network(x[part]), labels[part], temperature, supcon).backward()
            optimiser.step()


def contrastive_loss(encoded: Tensor, labels: Tensor, temperature: float, supcon: str = "paper") -> Tensor:
    """The supervised contrastive loss of encoded views (n, e) with labels (n,): a scalar.

    "paper" (FUAP eq. 7): sum over i of -1/|P(i)| sum over p in P(i) of log( exp(s_ip / t) / sum over v != i of exp(s_iv / t) ),
    with cosines s and P(i) the other views of i's label; a view without any counts nothing. "code": mean over i of -log of the
    share of exp(s / t) that views with i's label have, i itself included on both sides.
    """
    unit = encoded / encoded.norm(dim=1, keepdim=True).clamp_min(1e-8)
    logits = unit @ unit.T / temperature
    same = labels[:, None] == labels[None, :]
    if supcon == "code":
        share: Tensor = logits.masked_fill(~same, -torch.inf).logsumexp(1) - logits.logsumexp(1)
        return -share.mean()
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    log_share = logits - logits.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    others = same & ~itself
    loss: Tensor = -(log_share * others).sum(1).div(others.sum(1).clamp_min(1)).sum()
    return loss
