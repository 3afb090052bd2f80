"""How a party fares that hides a derived model: what each way costs it in accuracy, and the audit in power (torch)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.progress import Progress
from onnxaudit.bundle import QueryBundle
from onnxaudit.craft.data import Data
from onnxaudit.craft.pools.references import split
from onnxaudit.craft.victim import Victim
from onnxaudit.errors import UsageError
from onnxaudit.interview import interview
from onnxaudit.registry import deployed_as, open_suspect
from onnxaudit.report.model import DERIVED
from onnxaudit.suspect import Suspect, Target
from onnxaudit.zoo.attacks import WAYS, derive
from onnxaudit.zoo.naturalness import roughness

PLAIN = "none"
REFUSED = (0.02, 0.1, 0.25)
"""Shares of natural inputs that a server refuses which refuses odd ones."""
SERVERS: Mapping[str, tuple[str, ...]] = {
    PLAIN: (),
    "rounds to 1 digit": ("temper:t=1", "round:digits=1"),
    "noise on scores 0.2": ("perturb:sigma=0.2",),
    "noise on scores 0.5": ("perturb:sigma=0.5",),
    "top 3": ("topk:k=3",),
    "label only": ("label",),
    "label, 5 % flipped": ("flip-labels:rate=0.05",),
    "label, 20 % flipped": ("flip-labels:rate=0.2",),
    "noise on inputs 0.05": ("noise:sigma=0.05",),
    "noise on inputs 0.1": ("noise:sigma=0.1",),
    "JPEG 50": ("jpeg:quality=50",),
    "JPEG 10": ("jpeg:quality=10",),
    "blur 0.5": ("blur:sigma=0.5",),
    "blur 1": ("blur:sigma=1",),
    "resize 0.75": ("resize:scale=0.75",),
    "resize 0.5": ("resize:scale=0.5",),
    "posterise 3 bits": ("posterise:bits=3",),
    "posterise 1 bit": ("posterise:bits=1",),
}
"""What servers do, in words and as steps of ``deployed_as``."""
QUICK = (PLAIN, "rounds to 1 digit", "label only", "noise on inputs 0.1", "JPEG 50", "blur 1")
ON_IMAGES = ("noise on inputs", "JPEG", "blur", "resize", "posterise", "refuses rough")


@dataclass(frozen=True, slots=True)
class Hidden:
    """One derived model behind one server. accuracy: on inputs that it was not trained on. score: the combined statistic."""

    way: str
    server: str
    steps: tuple[str, ...]
    access: str
    accuracy: float
    score: float | None
    p_value: float | None
    finding: str
    reasons: tuple[str, ...]

    @property
    def derived(self) -> bool:
        """Whether it was found."""
        return self.finding == DERIVED


def hide(
    bundle: QueryBundle,
    victim: Victim,
    data: Data,
    folder: Path,
    progress: Progress,
    *,
    seed: int,
    jobs: int | None,
    device: str,
    quick: bool,
) -> Iterator[Hidden]:
    """Every way to change the victim's weights, behind every server.

    The party that hides has the data that are no queries of the bundle: three parts in four to train on, the rest to measure
    accuracy. Raises UsageError without labels, or if the victim's weights cannot be trained.
    """
    training, test = split(without_queries(data, bundle))
    if training.y is None or test.y is None:
        raise UsageError("a party that hides trains on labelled data", "Give y with the data.")
    portable = victim.portable()
    if portable is None:
        raise UsageError("the victim's weights cannot be changed (frozen, not float32, or of one batch size)", "Leave it out.")
    images = data.x.ndim == 4  # the radius of adversarial training is one of pixels
    ways = [way for way in WAYS if (way.quick or not quick) and (images or not way.recipe.adversarial)]
    report = progress.task("training derived models", len(ways))
    known = f"{victim.sha256} {victim.spec}"
    labelled = training.x, training.y, training.sha256
    files = derive(ways, portable, known, labelled, seed, folder, jobs=jobs, progress=report)
    report = progress.task("asking derived models", len(files))
    for number, (name, file) in enumerate(files.items()):
        with open_suspect(Target(str(file), victim.spec, victim.num_classes, device)) as model:
            for server, steps in servers_for(model, training, quick=quick).items():
                yield _judged(bundle, deployed_as(model, steps), test, name, server, steps)
        report(number + 1)


def without_queries(data: Data, bundle: QueryBundle) -> Data:
    """The inputs that are no queries of the bundle, controls included: whoever hides does not have the victim's."""
    asked = {query.tobytes() for query in bundle.queries}
    return data.take(np.array([row for row, x in enumerate(data.x) if x.tobytes() not in asked], np.int64))


def servers_for(model: Suspect, natural: Data, *, quick: bool) -> dict[str, tuple[str, ...]]:
    """All servers for this model; what counts as odd is fitted on natural inputs."""
    servers = {name: steps for name, steps in SERVERS.items() if not quick or name in QUICK}
    scores = interview(model, natural.x).answers.degrade(Access.PROBS)
    for share in REFUSED[1:2] if quick else REFUSED:
        if natural.x.ndim == 4:
            limit = float(np.quantile(roughness(natural.x.astype(np.uint8, copy=False)), 1 - share))
            servers[f"refuses rough inputs, {share:.0%}"] = (f"refuse-rough:energy={limit:.6f}",)
        limit = float(np.quantile(_surest(scores), share))
        servers[f"refuses unsure inputs, {share:.0%}"] = (f"refuse-unsure:confidence={limit:.4f}",)
    if natural.x.ndim != 4:
        servers = {name: steps for name, steps in servers.items() if not name.startswith(ON_IMAGES)}
    return servers


def _surest(scores: Answers) -> NDArray[np.float32]:
    """The probability of each input's best class, (n,)."""
    highest: NDArray[np.float32] = scores.dense().max(axis=1)
    return highest


def _judged(bundle: QueryBundle, suspect: Suspect, test: Data, way: str, server: str, steps: Sequence[str]) -> Hidden:
    answers = interview(suspect, bundle.queries).answers
    report = judge(bundle, suspect.card, answers, None)
    accuracy = float((interview(suspect, test.x).answers.labels == test.y).mean())
    return Hidden(
        way, server, tuple(steps), answers.access.word, accuracy, report.score, report.p_value, report.finding, report.reasons
    )
