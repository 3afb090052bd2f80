"""Reads a zoo's recipe file (TOML) into a plan: every list is a sweep, every value is checked before anything is trained."""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from onnxaudit.decode import decode
from onnxaudit.errors import ArtefactError, UsageError
from onnxaudit.registry import check_deployment
from onnxaudit.zoo.architectures import ARCHITECTURES
from onnxaudit.zoo.manifest import KINDS
from onnxaudit.zoo.plan import CONVERSIONS, FRESH, FROM_ANSWERS, METHODS, DataPlan, Plan, Planned
from onnxaudit.zoo.training import OPTIMISERS, Recipe

SHIPPED = Path(__file__).parent / "plans"
TABLES, LISTS, SCALES = ("data", "labels", "architectures", "victim"), ("model", "deployed"), ("wider", "longer", "attack_steps")
SET_ASIDE = ("queries", "test")
"""Rows of the data that are no parts to train on."""
NAME = re.compile(r"[\w.+-]+")
OTHER_INPUTS = 1500
"""Inputs that another label set is taken to have when epochs are worked out of ``images``."""
GREY_LEVELS = 255


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
    TOML or has values of the wrong type, UsageError naming the entry that is wrong.
    """
    value = _read(path, ())
    data = _checked_data(decode(DataPlan, value.get("data", {}), f"{path.name} [data]"), inputs, path.name)
    labels = decode(cast("type[Any]", Mapping[str, str]), value.get("labels", {}), f"{path.name} [labels]")
    for name in labels:
        if not NAME.fullmatch(name) or name == "own":
            raise UsageError(f"{path.name}: a label set cannot be called {name!r}")
    scale = decode(_Scale, {key: value[key] for key in SCALES if key in value}, path.name)
    trainings = {
        name: decode(_Training, table, f"{path.name} [architectures] {name}")
        for name, table in value.get("architectures", {}).items()
    }
    reader = _Reader(path.name, data, labels, trainings, inputs - data.queries - data.test, seed, scale)
    victim = reader.recipe(decode(_Training, value.get("victim", {}), f"{path.name} [victim]"), "own", "the victim")
    models = [planned for table in value.get("model", []) for planned in reader.models(table, victim)]
    models += [planned for table in value.get("deployed", []) for planned in reader.deployed(table, models)]
    _check(models, victim, path.name)
    return Plan(data, labels, victim, tuple(models))


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """A recipe file's tables, on top of those of its ``base``. above: the files that build on this one."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # TOML's own are ValueErrors, and so is a number of 5000 digits
        raise ArtefactError(f"{path.name} is not valid TOML: {error}") from None
    unknown = set(value) - {"base", *TABLES, *LISTS, *SCALES}
    if unknown:
        raise UsageError(f"{path.name}: unknown table {sorted(unknown)[0]!r}", "See docs/zoo.md.")
    wrong = [f"[{name}]" for name in TABLES if not isinstance(value.get(name, {}), dict)]
    wrong += [
        f"[[{name}]]"
        for name in LISTS
        if not isinstance(value.get(name, []), list) or not all(isinstance(item, dict) for item in value.get(name, []))
    ]
    if wrong:
        raise ArtefactError(f"{path.name}: {wrong[0]} must be written as that", "See docs/zoo.md.")
    if "base" not in value:
        return value
    below = path.parent / str(value["base"])
    base = below if below.is_file() and below.resolve() != path.resolve() else find_plan(str(value["base"]))
    if base.resolve() in above:
        raise UsageError(f"{path.name} and {base.name} are each other's base")
    under = _read(base, (*above, path.resolve()))
    tables = {name: {**under.get(name, {}), **value.get(name, {})} for name in TABLES}
    lists = {name: [*under.get(name, []), *value.get(name, [])] for name in LISTS}
    return {**under, **value, **tables, **lists}


def _checked_data(data: DataPlan, inputs: int, where: str) -> DataPlan:
    if min(data.queries, data.test) < 10 or data.queries + data.test > inputs // 2:
        raise UsageError(
            f"{where}: {data.queries} inputs for queries and {data.test} for tests do not suit data of {inputs}",
            "Give at least 10 each and no more than half of the data.",
        )
    for name, (start, stop) in data.parts.items():
        if not NAME.fullmatch(name) or name in SET_ASIDE:
            raise UsageError(f"{where}: a part cannot be called {name!r}")
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
class _Training:
    """What a table may say of a training; None: nothing. images: inputs that it sees in all. adversarial: in grey levels."""

    arch: str | None = None
    images: float | None = None
    epochs: int | None = None
    width: float | None = None
    lr: float | None = None
    batch: int | None = None
    weight_decay: float | None = None
    flip: bool | None = None
    shift: int | None = None
    adversarial: float | None = None
    attack_steps: int | None = None
    optimiser: str | None = None

    def on(self, other: _Training) -> _Training:
        """This, and where it says nothing the other. Its own epochs leave no room for the other's images."""
        said = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if "epochs" in said:
            other = dataclasses.replace(other, images=None)
        return dataclasses.replace(other, **said)


@dataclass(frozen=True, slots=True)
class _Entry(_Training):
    """One model, sweeps expanded. The options are those of ``METHODS``; radius: in grey levels."""

    kind: str = ""
    method: str = "train"
    task: str | None = None
    name: str | None = None
    part: str = "own"
    labels: str = ""
    copies: int = 1
    least: float = 0.0
    like_victim: bool = False
    rows: int | None = None
    trees: int | None = None
    last: bool | None = None
    reset: bool | None = None
    share: float | None = None
    scale: float | None = None
    temperature: float | None = None
    mixed: float | None = None
    k: int | None = None
    radius: float | None = None
    hardening: int | None = None


OPTIONS = frozenset().union(*METHODS.values())
AT_LEAST: Mapping[str, float] = {
    **dict.fromkeys(("copies", "rows", "trees", "k", "hardening", "epochs", "images", "batch", "attack_steps"), 1),
    **dict.fromkeys(("least", "share", "mixed", "lr", "weight_decay", "shift", "adversarial", "radius"), 0),
    **dict.fromkeys(("width", "temperature", "scale"), 1e-6),
}
AT_MOST: Mapping[str, float] = {"share": 1, "mixed": 1, "adversarial": GREY_LEVELS, "radius": GREY_LEVELS}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Expands entries of one recipe file. left: inputs that parts are shares of."""

    file: str
    data: DataPlan
    labels: Mapping[str, str]
    trainings: Mapping[str, _Training]
    left: int
    seed: int
    scale: _Scale

    def models(self, table: Mapping[str, Any], victim: Recipe) -> Iterator[Planned]:
        """All models of one [[model]] table."""
        swept = {key: value for key, value in table.items() if isinstance(value, list)}
        for values in itertools.product(*swept.values()):
            entry = decode(_Entry, {**table, **dict(zip(swept, values, strict=True))}, f"{self.file} [[model]]")
            task = entry.task or ("independent" if entry.method in FRESH else entry.method)
            words = [entry.name or task, *(_word(key, value) for key, value in zip(swept, values, strict=True))]
            for copy in range(1, entry.copies + 1):
                name = "-".join([*words, *([str(copy)] if entry.copies > 1 else [])])
                self._check(entry, name)
                yield self._model(entry, name, task, victim)

    def _check(self, entry: _Entry, name: str) -> None:
        """Raise UsageError for an entry that makes no sense."""
        where, method = f"{self.file}: {name}", entry.method
        if not NAME.fullmatch(name):
            raise UsageError(f"{where}: a name has letters, digits and . + - _ only")
        if method not in METHODS:
            raise UsageError(f"{where}: unknown method {method!r}", f"Use {', '.join(METHODS)}.")
        if entry.kind not in KINDS:
            raise UsageError(f"{where}: kind must be one of {', '.join(KINDS)}")
        if (entry.kind == "positive") == (method in FRESH):
            what = "knows nothing of the victim" if method in FRESH else "derives a model from the victim"
            raise UsageError(f"{where}: {method} {what}, so it cannot make a {entry.kind}")
        given = {key: value for key, value in dataclasses.asdict(entry).items() if value is not None}
        missing = sorted({"share", "scale", "k"} & METHODS[method] - set(given))
        if missing:
            raise UsageError(f"{where}: {method} needs {missing[0]}", f"Add {missing[0]} = ….")
        for key in sorted(OPTIONS & set(given) - METHODS[method]):
            raise UsageError(f"{where}: {method} has no option {key!r}")
        _check_ranges(given, where)
        if entry.labels and entry.labels not in self.labels:
            raise UsageError(f"{where}: unknown label set {entry.labels!r}", "Name its data under [labels].")
        if entry.labels and (entry.least or method in (*FROM_ANSWERS, *CONVERSIONS)):
            what = "least" if entry.least else method
            raise UsageError(f"{where}: {what} is for the victim's own label set")
        if method == "transfer" and not entry.labels:
            raise UsageError(f"{where}: transfer needs a label set", 'Add labels = "…".')
        if not entry.labels and entry.part not in self.data.parts:
            raise UsageError(f"{where}: unknown part {entry.part!r}", f"Use {', '.join(self.data.parts)}.")

    def _model(self, entry: _Entry, name: str, task: str, victim: Recipe) -> Planned:
        part = "" if entry.labels else entry.part
        if entry.method in CONVERSIONS:
            return Planned(name, entry.kind, task, entry.method, part, parent="" if entry.method == "export" else "victim")
        if entry.like_victim:
            recipe = dataclasses.replace(victim, seed=self._seed(name))
        else:
            said = _Training(**{field.name: getattr(entry, field.name) for field in dataclasses.fields(_Training)})
            said = said if said.arch else dataclasses.replace(said, arch=victim.arch)
            recipe = self.recipe(said, part, name, most=entry.rows)
        options = {key: getattr(entry, key) for key in METHODS[entry.method] if getattr(entry, key) is not None}
        if "radius" in options:
            options["radius"] /= GREY_LEVELS
        return Planned(name, entry.kind, task, entry.method, part, recipe, options, entry.labels, least=entry.least)

    def recipe(self, said: _Training, part: str, name: str, *, most: int | None = None) -> Recipe:
        """The training of one model: its architecture's values, overruled by its own.

        part: "" of another label set. most: inputs that it is trained on.
        """
        arch = said.arch or Recipe().arch
        if arch not in ARCHITECTURES:
            raise UsageError(f"{self.file}: {name}: arch {arch!r} is not known", f"Use {', '.join(ARCHITECTURES)}.")
        whole = said.on(self.trainings.get(arch, _Training()))
        if whole.optimiser is not None and whole.optimiser not in OPTIMISERS:
            raise UsageError(f"{self.file}: {name}: optimiser {whole.optimiser!r} is not known", f"Use {', '.join(OPTIMISERS)}.")
        values = {key: value for key, value in dataclasses.asdict(whole).items() if value is not None}
        _check_ranges(values, f"{self.file}: {name}")
        values.pop("images", None)
        if whole.images is not None:
            start, stop = self.data.parts.get(part, (0.0, 1.0))
            rows = max(1, round((stop - start) * self.left)) if part else OTHER_INPUTS
            values["epochs"] = max(1, round(self.scale.longer * whole.images / min(rows, most or rows)))
        values |= {"arch": arch, "width": self.scale.wider * values.get("width", 1.0)}
        values["adversarial"] = values.get("adversarial", 0.0) / GREY_LEVELS
        values.setdefault("attack_steps", self.scale.attack_steps)
        return Recipe(**values, seed=self._seed(name))

    def deployed(self, table: Mapping[str, Any], models: Sequence[Planned]) -> Iterator[Planned]:
        """The models named in one [[deployed]] table, behind each of its servers."""
        known = {model.name: model for model in models}
        entry = decode(_Deployed, table, f"{self.file} [[deployed]]")
        for name in entry.of:
            if name not in known:
                raise UsageError(f"{self.file}: [[deployed]] names {name!r}, which is no model here", f"Use {', '.join(known)}.")
            for steps in entry.steps:
                chain = (steps,) if isinstance(steps, str) else tuple(map(str, steps)) if isinstance(steps, list) else ()
                if not chain:
                    raise UsageError(f"{self.file}: [[deployed]]: {steps!r} is no step of a server", "See docs/zoo.md.")
                check_deployment(chain)
                words = "+".join(re.sub(r"[^\w.+-]", "", step.replace(":", "-")) for step in chain)
                yield dataclasses.replace(
                    known[name], name=f"{name}-behind-{words}", method="export", parent=name, deployed=chain, least=0.0
                )

    def _seed(self, name: str) -> int:
        """A model's own seed: it stays when others are added."""
        return zlib.crc32(f"{self.seed}/{name}".encode())


@dataclass(frozen=True, slots=True)
class _Deployed:
    """Models by name, and the servers that each stands behind: one step, or several in a list."""

    of: tuple[str, ...]
    steps: tuple[Any, ...]


def _check_ranges(values: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for a number that is too small or too large."""
    for key, value in values.items():
        if value < AT_LEAST.get(key, value) or value > AT_MOST.get(key, value):
            raise UsageError(f"{where}: {key} = {value:g} is out of range")


def _word(key: str, value: Any) -> str:
    """A swept value as part of a name; architectures and data parts speak for themselves."""
    if isinstance(value, bool):
        return key if value else f"not-{key}"
    return f"{key}-{value:g}" if isinstance(value, int | float) else str(value)


def _check(models: Sequence[Planned], victim: Recipe, where: str) -> None:
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{where} plans {twice[0]} twice", "Give one of them a name of its own.")
    if not models:
        raise UsageError(f"{where} plans no models", "Add [[model]] tables.")
    judged = {_trained_as(model): model.name for model in models if model.kind in ("negative", "sibling") and not model.deployed}
    judged[_trained_as(Planned("", "", "", "train", "own", victim))] = "the victim"
    for model in models:
        if model.kind == "reference" and (twin := judged.get(_trained_as(model))):
            raise UsageError(
                f"{where}: {model.name} is trained as {twin} is, but for its seed",
                "An innocent judged among its twins says nothing of others: give the reference another part, width or rate.",
            )


def _trained_as(model: Planned) -> tuple[Any, ...]:
    """All that a model's training depends on but its seed."""
    recipe = dataclasses.replace(model.recipe, seed=0)
    return model.method, model.part, model.labels, recipe, tuple(sorted(model.options.items()))
