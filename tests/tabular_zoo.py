"""Makes a victim of float vectors, its data and a small zoo in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn


def network(seed: int, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """Two layers, trained for a moment."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimiser = torch.optim.Adam(made.parameters(), 0.02)
    for _ in range(120):
        optimiser.zero_grad()
        nn.functional.cross_entropy(made(x), y).backward()
        optimiser.step()
    return made.eval()


def save_tabular_zoo(folder: Path, seed: int) -> None:
    """Three classes that overlap; the victim and its noisy copies on one half of the data, the others on the other."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 900)
    x = (rng.normal(size=(900, 8)) + 1.2 * np.eye(3, 8)[y]).astype(np.float32)
    np.savez(folder / "table.npz", x=x[:500], y=y[:500])
    own, other = (
        (torch.from_numpy(x[500:700]), torch.from_numpy(y[500:700])),
        (torch.from_numpy(x[700:]), torch.from_numpy(y[700:])),
    )
    example, entries = torch.zeros(2, 8), []

    def save(model: nn.Module, name: str) -> None:
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), str(folder / name))

    victim = network(0, *own)
    save(victim, "victim.pt")
    for index in range(3):
        with torch.no_grad():
            for weight in victim.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
        save(victim, f"copy{index}.pt")
        entries.append({"file": f"copy{index}.pt", "kind": "positive", "task": "noise"})
    for index in range(12):
        save(network(1 + index, *other), f"other{index}.pt")
        kind = "negative" if index < 6 else "reference"
        entries.append({"file": f"other{index}.pt", "kind": kind, "task": "independent"})
    (folder / "zoo.json").write_text(json.dumps(entries))
