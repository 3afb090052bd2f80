"""A zoo's plan: from a recipe file (TOML) to the models that are to be made, each with all that its weights depend on."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from onnxaudit.decode import decode
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.registry import check_deployment
from onnxaudit.zoo.architectures import ARCHITECTURES
from onnxaudit.zoo.manifest import KINDS
from onnxaudit.zoo.training import OPTIMISERS, Recipe

SHIPPED = Path(__file__).parent / "plans"
METHODS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "train": frozenset({"rows"}),
        "forest": frozenset({"rows", "trees"}),
        "export": frozenset(),
        "fp16": frozenset(),
        "int8-static": frozenset(),
        "int8-dynamic": frozenset(),
        "fine-tune": frozenset({"last", "reset"}),
        "transfer": frozenset({"last"}),
        "prune-weights": frozenset({"share"}),
        "prune-filters": frozenset({"share"}),
        "fine-prune": frozenset({"share"}),
        "add-noise": frozenset({"scale"}),
        "extract-labels": frozenset({"rows"}),
        "extract-probabilities": frozenset({"rows", "temperature", "mixed"}),
        "extract-top": frozenset({"rows", "k"}),
        "extract-adversarially": frozenset({"rows", "radius", "hardening"}),
    }
)
"""What makes a model, and the options it has besides those of its training."""
CONVERSIONS = ("export", "fp16", "int8-static", "int8-dynamic")
FRESH = ("train", "forest")
"""Methods that know nothing of the victim."""
FROM_WEIGHTS = ("fine-tune", "transfer", "prune-weights", "prune-filters", "fine-prune", "add-noise")
"""Methods that change a copy of the victim."""
FROM_ANSWERS = ("extract-labels", "extract-probabilities", "extract-top", "extract-adversarially")
"""Methods that train a fresh network on what the victim says."""
TABLES, LISTS, SCALES = ("data", "labels", "architectures", "victim"), ("model", "deployed"), {"wider", "longer", "attack_steps"}
_OWN = frozenset({"kind", "task", "method", "part", "arch", "labels", "copies", "least", "name", "images", "like-victim"})


@dataclass(frozen=True, slots=True)
class Planned:
    """One model to be made. part: of the data, by name. least: share of the victim's accuracy below which it is left out.

    parent: the name of the model that is converted, or served by a server that does the ``deployed`` steps.
    """

    name: str
    kind: str
    task: str
    method: str
    part: str = ""
    recipe: Recipe = field(default_factory=Recipe)
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: str = ""
    parent: str = ""
    deployed: tuple[str, ...] = ()
    least: float = 0.0


@dataclass(frozen=True, slots=True)
class DataPlan:
    """How the data is divided. queries, test: inputs set aside for crafting and for measuring accuracy; they train no model.

    parts: what is left, in random order, as shares from where to where.
    """

    queries: int = 4000
    test: int = 6000
    parts: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"own": (0.0, 0.5), "attacker": (0.5, 1.0)})


@dataclass(frozen=True, slots=True)
class Plan:
    """data: how it is divided; labels: other label sets and where their data is; victim: how one is trained if none is given."""

    data: DataPlan
    labels: Mapping[str, str]
    victim: Recipe
    models: tuple[Planned, ...]


def find_plan(name: str) -> Path:
    """The file of a shipped plan, or the path itself. Raises UsageError for neither."""
    path = SHIPPED / f"{name}.toml"
    if path.is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
    raise UsageError(f"{name} is not a recipe file", f"Give a TOML file, or one of: {known}.")


def load_plan(path: Path, inputs: int, seed: int) -> Plan:
    """Read and expand a recipe file for data with so many inputs. seed: of everything that is random.

    Every list among a model's values is a sweep: one model for each combination. Raises ArtefactError for a file that is no
    TOML, UsageError naming the entry that is wrong.
    """
    value = _read(path)
    data = _checked_data(decode(DataPlan, value.get("data", {}), f"{path.name} [data]"), inputs, path.name)
    labels = decode(cast("type[Any]", Mapping[str, str]), value.get("labels", {}), f"{path.name} [labels]")
    scale = decode(_Scale, {key: value[key] for key in SCALES & set(value)}, path.name)
    reader = _Reader(path.name, data, labels, value.get("architectures", {}), inputs - data.queries - data.test, seed, scale)
    victim = reader.recipe(value.get("victim", {}), "own", "the victim")
    models = [planned for item in value.get("model", []) for planned in reader.models(item, victim)]
    models += [planned for item in value.get("deployed", []) for planned in reader.deployed(item, models)]
    _check(models, path.name)
    return Plan(data, labels, victim, tuple(models))


def _read(path: Path) -> dict[str, Any]:
    """A recipe file's tables, on top of those of its ``base``."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path.name} is not valid TOML: {error}") from None
    unknown = set(value) - {"base", *TABLES, *LISTS, *SCALES}
    if unknown:
        raise UsageError(f"{path.name}: unknown table {sorted(unknown)[0]!r}", "See docs/zoo.md.")
    if "base" not in value:
        return value
    below = path.parent / str(value["base"])
    base = _read(below if below.is_file() and below != path else find_plan(str(value["base"])))
    tables = {name: {**base.get(name, {}), **value.get(name, {})} for name in TABLES}
    lists = {name: [*base.get(name, []), *value.get(name, [])] for name in LISTS}
    return {**base, **value, **tables, **lists}


def _checked_data(data: DataPlan, inputs: int, where: str) -> DataPlan:
    if min(data.queries, data.test) < 10 or data.queries + data.test > inputs // 2:
        raise UsageError(
            f"{where}: {data.queries} inputs for queries and {data.test} for tests do not suit data of {inputs}",
            "Give at least 10 each and no more than half of the data.",
        )
    for name, (start, stop) in data.parts.items():
        if not 0 <= start < stop <= 1:
            raise UsageError(f"{where}: part {name} must go from one share to a larger one, in 0 to 1")
    if "own" not in data.parts:
        raise UsageError(f"{where}: [data] parts lacks 'own', what the victim is trained on")
    return data


@dataclass(frozen=True, slots=True)
class _Scale:
    """How much larger than written networks are, and how much longer they are trained; steps of PGD in training."""

    wider: float = 1.0
    longer: float = 1.0
    attack_steps: int = 5


@dataclass(frozen=True, slots=True)
class _Reader:
    """Expands entries of one recipe file. left: inputs that parts are shares of."""

    file: str
    data: DataPlan
    labels: Mapping[str, str]
    architectures: Mapping[str, Mapping[str, Any]]
    left: int
    seed: int
    scale: _Scale

    def models(self, item: Mapping[str, Any], victim: Recipe) -> Iterator[Planned]:
        """All models of one [[model]] table."""
        task = str(item.get("task", "independent" if item.get("method", "train") in FRESH else item["method"]))
        copies = item.get("copies", 1)
        swept = {key: value for key, value in item.items() if isinstance(value, list)}
        for values in itertools.product(*swept.values()):
            entry = {**item, **dict(zip(swept, values, strict=True))}
            words = [str(item.get("name", task)), *(_word(key, value) for key, value in zip(swept, values, strict=True))]
            for copy in range(1, copies + 1):
                name = "-".join([*words, *([str(copy)] if copies > 1 else [])])
                yield self._model(entry, name, task, victim)

    def _model(self, entry: Mapping[str, Any], name: str, task: str, victim: Recipe) -> Planned:
        method = str(entry.get("method", "train"))
        if method not in METHODS:
            raise UsageError(f"{self.file}: {name}: unknown method {method!r}", f"Use {', '.join(METHODS)}.")
        if entry.get("kind") not in KINDS:
            raise UsageError(f"{self.file}: {name}: kind must be one of {', '.join(KINDS)}")
        labels, part = str(entry.get("labels", "")), str(entry.get("part", "own"))
        missing = sorted({"share", "scale", "k"} & METHODS[method] - set(entry))
        if missing:
            raise UsageError(f"{self.file}: {name}: {method} needs {missing[0]}", f"Add {missing[0]} = ….")
        if not 0 <= entry.get("share", 0.5) <= 1:
            raise UsageError(f"{self.file}: {name}: share {entry['share']:g} is not between 0 and 1")
        if labels and labels not in self.labels:
            raise UsageError(f"{self.file}: {name}: unknown label set {labels!r}", "Name its data under [labels].")
        if not labels and part not in self.data.parts:
            raise UsageError(f"{self.file}: {name}: unknown part {part!r}", f"Use {', '.join(self.data.parts)}.")
        trained = {key: value for key, value in entry.items() if key not in _OWN | METHODS[method]}
        if method in CONVERSIONS:
            return Planned(name, str(entry["kind"]), task, method, part, parent="" if method == "export" else "victim")
        if entry.get("like-victim"):
            recipe = dataclasses.replace(victim, seed=self._seed(name))
        else:
            recipe = self.recipe(
                {**trained, "arch": entry.get("arch", victim.arch), "images": entry.get("images")},
                part,
                name,
                labels=labels,
                most=entry.get("rows"),
            )
        options = {key: value for key, value in entry.items() if key in METHODS[method]}
        return Planned(
            name, str(entry["kind"]), task, method, "" if labels else part, recipe, options, labels, least=entry.get("least", 0.0)
        )

    def recipe(self, said: Mapping[str, Any], part: str, name: str, *, labels: str = "", most: int | None = None) -> Recipe:
        """The training of one model: its architecture's values, overruled by its own. images: how many it sees in all.

        most: inputs that it is trained on.
        """
        values = {**self.architectures.get(str(said.get("arch", "resnet")), {})}
        values |= {key: value for key, value in said.items() if value is not None}
        if "epochs" in said:
            values.pop("images", None)
        images = values.pop("images", None)
        if images is not None:
            start, stop = self.data.parts.get(part, (0.0, 1.0))
            rows = 1500 if labels else max(1, round((stop - start) * self.left))
            rows = min(rows, most or rows)
            values["epochs"] = max(1, round(self.scale.longer * images / rows))
        values["width"] = self.scale.wider * values.get("width", 1.0)
        values.setdefault("attack_steps", self.scale.attack_steps)
        recipe = decode(Recipe, {**values, "seed": self._seed(name)}, f"{self.file}: {name}")
        for what, value, known in (("arch", recipe.arch, ARCHITECTURES), ("optimiser", recipe.optimiser, OPTIMISERS)):
            if value not in known:
                raise UsageError(f"{self.file}: {name}: {what} {value!r} is not known", f"Use {', '.join(known)}.")
        return dataclasses.replace(recipe, adversarial=recipe.adversarial / 255 if recipe.adversarial > 1 else recipe.adversarial)

    def deployed(self, item: Mapping[str, Any], models: Sequence[Planned]) -> Iterator[Planned]:
        """The models named in one [[deployed]] table, behind each of its servers."""
        known = {model.name: model for model in models}
        for name in item.get("of", []):
            if name not in known:
                raise UsageError(f"{self.file}: [[deployed]] names {name!r}, which is no model here", f"Use {', '.join(known)}.")
            for steps in item.get("steps", []):
                chain = (steps,) if isinstance(steps, str) else tuple(steps)
                check_deployment(chain)
                words = "+".join(step.replace(":", "-").replace("=", "") for step in chain)
                model = known[name]
                yield dataclasses.replace(
                    model, name=f"{name}-behind-{words}", method="export", parent=name, deployed=chain, least=0.0
                )

    def _seed(self, name: str) -> int:
        """A model's own seed: it stays when others are added."""
        return zlib.crc32(f"{self.seed}/{name}".encode())


def _word(key: str, value: Any) -> str:
    """A swept value as part of a name; architectures and data parts speak for themselves."""
    if isinstance(value, bool):
        return key if value else f"not-{key}"
    return str(value) if isinstance(value, str) else f"{key}-{value:g}"


def _check(models: Sequence[Planned], where: str) -> None:
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{where} plans {twice[0]} twice", "Give one of them a name of its own.")
    if not models:
        raise UsageError(f"{where} plans no models", "Add [[model]] tables.")
