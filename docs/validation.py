"""Writes docs/validation.md: how often independent models are called derived, and what the tests that papers use would say.

    onnxaudit zoo build --data FASHION-MNIST --recipe docs/validation.toml -o zoo-validation
    python docs/validation.py zoo-validation [--victims 8] [--output docs/validation.md]

Every model by the victim's recipe is the victim in turn. For each, a bundle is crafted with the zoo's references and ``SIBLINGS``
siblings; every innocent answers it once, and is judged in each of the ways that the page compares. Queries, references and
siblings never see an innocent. The figures are kept beside the page as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binom, t

from onnxaudit.answers import Access, Answers
from onnxaudit.audit.calibrating import preregistered
from onnxaudit.audit.crafting import CraftOptions, craft
from onnxaudit.audit.judging.judging import judge
from onnxaudit.audit.progress import Silent
from onnxaudit.bundle import QueryBundle
from onnxaudit.evidence.metrics import clopper_pearson
from onnxaudit.interview import interview
from onnxaudit.registry import open_suspect
from onnxaudit.report.model import Report
from onnxaudit.report.text import markdown_table
from onnxaudit.suspect import SuspectCard, Target
from onnxaudit.zoo.manifest import ZooEntry, load_zoo
from onnxaudit.zoo.saving import DIFFERENTIABLE

HERE = Path(__file__).resolve().parent
ALPHAS = (0.01, 0.05, 0.1, 0.2)
SIBLINGS, TWINS = 24, 5
"""Of the models by the victim's recipe: so many in a bundle, and so many kept out of all bundles, as honest twins."""
AUTO = ("ipguard-tl", "sac-m", "akh")
QUERY_LEVEL = ("ipguard-tl", "akh", "random")
VIEWS, UNIVERSAL, UNIVERSAL_VICTIMS = 20, 4000, 2
"""FUAP's views and its queries, 200 a view as in the paper, and for how many of the victims they are asked."""
WAYS: Mapping[str, str] = {
    "rank": "rank among the references, no tolerance",
    "finding": "**the finding** (`mean-z/1`, tolerance)",
    "looks": "**the finding with looks**",
    "siblings-rank": "rank of D among the references, no tolerance",
    "siblings": "**the finding with siblings** (`sibling-z/1`)",
}


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One model of the zoo, and what it said to every bundle, and to those of FUAP."""

    entry: ZooEntry
    card: SuspectCard
    answers: Sequence[Answers]
    universal: Sequence[Answers]


def main() -> None:
    """Craft, ask, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--output", type=Path, default=HERE / "validation.md")
    given = parser.parse_args()
    zoo = load_zoo(given.folder / "zoo.json")
    kin = [given.folder / "victim.pt", *(_program(entry) for entry in zoo if entry.kind == "sibling")]
    bundles = [_bundle(given.folder, zoo, kin, place) for place in range(min(given.victims, len(kin) - TWINS))]
    universal = [_universal(given.folder, zoo, kin, place) for place in range(min(UNIVERSAL_VICTIMS, len(bundles)))]
    judged = [entry for entry in zoo if entry.kind in ("negative", "positive")]
    judged += [entry for entry in zoo if entry.kind == "sibling"][-TWINS:]
    models = list(_ask(judged, bundles, universal))
    figures = measure(bundles, universal, models)
    given.output.with_suffix(".json").write_text(packed(figures), encoding="utf-8")
    figures = unpacked(given.output.with_suffix(".json").read_text(encoding="utf-8"))
    folder = given.output.with_suffix("")
    folder.mkdir(exist_ok=True)
    draw(figures, folder)
    given.output.write_text(page(figures), encoding="utf-8")


def _program(entry: ZooEntry) -> Path:
    return Path(entry.file).with_suffix(DIFFERENTIABLE)


def _bundle(folder: Path, zoo: Sequence[ZooEntry], kin: Sequence[Path], place: int) -> QueryBundle:
    """A bundle of one victim, with all that the ways of judging need."""
    others = [file for number, file in enumerate(kin[:-TWINS]) if number != place][:SIBLINGS]
    links = folder / ".validation" / str(place)
    links.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(others):
        link = links / f"sibling-{number:02d}.pt"
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    options = dataclasses.replace(_options(folder, zoo, kin[place], place), schemes=(*AUTO, "random", "line-up"), siblings=links)
    bundle = craft(options, Silent())
    print(f"bundle {place}: victim {kin[place].name}", flush=True)
    return dataclasses.replace(bundle, id=f"{place:064x}")


def _universal(folder: Path, zoo: Sequence[ZooEntry], kin: Sequence[Path], place: int) -> QueryBundle:
    """FUAP's queries; a third of the references shows what views of independent models are like."""
    options = dataclasses.replace(
        _options(folder, zoo, kin[place], place), schemes=(f"fuap-t:views={VIEWS}",), queries=UNIVERSAL, controls=0
    )
    print(f"universal perturbations {place}: victim {kin[place].name}", flush=True)
    return craft(options, Silent())


def _options(folder: Path, zoo: Sequence[ZooEntry], victim: Path, place: int) -> CraftOptions:
    return CraftOptions(
        victim=victim,
        data=folder / "craft.npz",
        reference_files=[Path(entry.file) for entry in zoo if entry.kind == "reference"],
        device="cpu",
        scale=1 / 255 if place else None,
        layout="NCHW" if place else None,
    )


def _ask(entries: Sequence[ZooEntry], bundles: Sequence[QueryBundle], universal: Sequence[QueryBundle]) -> Iterator[Asked]:
    for number, entry in enumerate(entries):
        manifest = bundles[0].manifest
        target = Target(entry.file, manifest.input, manifest.victim.num_classes, "cpu", options={"threads": 1})
        with open_suspect(target) as suspect:
            said = [[interview(suspect, bundle.queries).answers for bundle in asking] for asking in (bundles, universal)]
            yield Asked(entry, suspect.card, *said)
        if number % 50 == 49:
            print(f"{number + 1} of {len(entries)} models asked", flush=True)


def packed(figures: Mapping[str, Any]) -> str:
    """The figures as JSON, a list for each column, p-values to four digits."""
    flat = [
        {**row, "p": None, "queries": None}
        | {f"p {way}": value for way, value in row["p"].items()}
        | {f"queries {name}": value for name, value in row["queries"].items()}
        for row in figures["rows"]
    ]
    columns = {name: [_short(row[name]) for row in flat] for name in flat[0] if name not in ("p", "queries")}
    return json.dumps({"facts": figures["facts"], "columns": columns}, separators=(",", ":")) + "\n"


def _short(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def unpacked(text: str) -> dict[str, Any]:
    """What ``packed`` wrote, as rows again."""
    value = json.loads(text)
    columns = value["columns"]
    rows: list[dict[str, Any]] = []
    for entries in zip(*columns.values(), strict=True):
        row: dict[str, Any] = {"p": {}, "queries": {}}
        for name, entry in zip(columns, entries, strict=True):
            kind, _, rest = name.partition(" ")
            if rest:
                row[kind][rest] = entry
            else:
                row[name] = entry
        rows.append(row)
    return {"facts": value["facts"], "rows": rows}


# ---------------------------------------------------------------------------------------------------------------- judging


def _only(bundle: QueryBundle, names: Sequence[str], *, siblings: bool) -> QueryBundle:
    """The bundle with some of its schemes, and without its siblings unless they are wanted."""
    manifest = bundle.manifest
    models = tuple(model for model in manifest.models if siblings or model.role != "sibling")
    schemes = tuple(entry for entry in manifest.schemes if entry.name in names)
    plain = dataclasses.replace(manifest, models=models, schemes=schemes, statistic="mean-z/1")
    return preregistered(dataclasses.replace(bundle, manifest=plain))


def measure(bundles: Sequence[QueryBundle], universal: Sequence[QueryBundle], models: Sequence[Asked]) -> dict[str, Any]:
    """p-values of every model, by victim, access and way of judging; and those of tests on single queries."""
    rows = []
    for place, bundle in enumerate(bundles):
        plain, kin = _only(bundle, AUTO, siblings=False), _only(bundle, (*AUTO, "line-up"), siblings=True)
        for model in models:
            if model.entry.kind == "positive" and place:
                continue  # derived from the first victim only
            for access in (Access.LOGITS, Access.LABEL):
                answers = model.answers[place].degrade(access)
                views = model.universal[place].degrade(access) if place < len(universal) else None
                rows.append(
                    {
                        "victim": place,
                        "kind": model.entry.kind,
                        "task": model.entry.task,
                        "accuracy": model.entry.accuracy,
                        "access": "label" if access == Access.LABEL else "logits",
                        "p": _p_values(plain, kin, model.card, answers),
                        "queries": _query_level(bundle, answers)
                        | {"fuap-t": None if views is None else _t_test(universal[place], model.card, views)},
                    }
                )
    manifest = bundles[0].manifest
    facts = {
        "references": len(manifest.of_role("reference")),
        "siblings": len(manifest.of_role("sibling")),
        "victims": len(bundles),
    }
    return {"facts": facts, "rows": rows}


def _p_values(plain: QueryBundle, kin: QueryBundle, card: SuspectCard, answers: Answers) -> dict[str, float | None]:
    """By way of judging; None where the report is inconclusive, which accuses nobody."""

    def of(bundle: QueryBundle, value: Callable[[Report], float | None], **more: Any) -> float | None:
        report = judge(bundle, card, answers, 0.2, **more)
        return None if report.finding == "inconclusive" else value(report)

    return {
        "rank": of(plain, lambda report: report.p_exchangeable),
        "finding": of(plain, lambda report: report.p_value),
        "looks": of(plain, lambda report: report.p_value, planned=plain.manifest.looks),
        "siblings": of(kin, lambda report: report.p_value),
        "siblings-rank": of(kin, lambda report: report.p_exchangeable),
    }


def _query_level(bundle: QueryBundle, answers: Answers) -> dict[str, float]:
    """One-sided binomial p-values of matching rates against the references' mean rate, as if queries were independent."""
    found = {}
    for entry in bundle.manifest.schemes:
        if entry.name in QUERY_LEVEL:
            rows = slice(*entry.rows)
            own = bundle.answers["victim"].labels[rows]
            pool = [bundle.answers[model.id].labels[rows] for model in bundle.manifest.of_role("reference")]
            rate = float(np.clip(np.mean([said == own for said in pool]), 0.5 / len(own), 1 - 0.5 / len(own)))
            found[entry.name] = float(binom.sf(int((answers.labels[rows] == own).sum()) - 1, len(own), rate))
    return found


def _t_test(bundle: QueryBundle, card: SuspectCard, answers: Answers) -> float:
    """FUAP's one-sided test, as if views were independent: Welch's t, on the fewest degrees of freedom it may have."""
    (scheme,) = judge(bundle, card, answers, 0.2).schemes
    return 1.0 if scheme.score is None else float(t.sf(scheme.score, VIEWS - 1))


# ------------------------------------------------------------------------------------------------------------------ tables


def selected(figures: Mapping[str, Any], access: str, kind: Callable[[Mapping[str, Any]], bool]) -> list[Mapping[str, Any]]:
    return [row for row in figures["rows"] if row["access"] == access and kind(row)]


def p_of(rows: Sequence[Mapping[str, Any]], way: str) -> NDArray[np.float64]:
    """p-values; 1 where the finding is inconclusive, which accuses nobody."""
    return np.array([1.0 if row["p"][way] is None else row["p"][way] for row in rows])


def rates(rows: Sequence[Mapping[str, Any]], way: str) -> list[str]:
    """For each alpha the share accused over all victims, the limits for the first victim alone, the range over victims."""
    cells = []
    for alpha in ALPHAS:
        by_victim = [
            p_of([row for row in rows if row["victim"] == victim], way) <= alpha + 1e-12
            for victim in sorted({row["victim"] for row in rows})
        ]
        shares = [float(hits.mean()) for hits in by_victim]
        low, high = clopper_pearson(int(by_victim[0].sum()), len(by_victim[0]))
        cells.append(f"{np.mean(shares):.1%} ({low:.0%} to {high:.0%}; {min(shares):.0%} to {max(shares):.0%})")
    return cells


def groups(figures: Mapping[str, Any], access: str) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Innocents in all, by whose data they were trained on, by their accuracy, and honest twins."""
    apart = selected(figures, access, lambda row: row["kind"] == "negative")
    yield "all independent models", apart
    yield "… trained on the victim's data", [row for row in apart if row["task"] == "own-data"]
    yield "… trained on other data", [row for row in apart if row["task"] == "other-data"]
    edges = np.quantile([row["accuracy"] for row in apart], [1 / 3, 2 / 3])
    thirds = np.searchsorted(edges, [row["accuracy"] for row in apart])
    for number, words in enumerate(("least", "middle", "most")):
        yield f"… {words} accurate third", [row for row, third in zip(apart, thirds, strict=True) if third == number]
    yield "honest twins (victim's recipe and data)", selected(figures, access, lambda row: row["kind"] == "sibling")


def query_level_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """How often the binomial test accuses at nominal levels."""
    rows = selected(figures, "label", lambda row: row["kind"] == "negative")
    table = []
    for name in QUERY_LEVEL:
        values = np.array([row["queries"][name] for row in rows])
        table.append(
            [f"binomial test, {name}, 100 queries", *(f"{(values <= level).mean():.1%}" for level in (0.05, 0.01, 1e-3, 1e-6))]
        )
    for access, words in (("logits", "scores"), ("label", "labels")):
        asked = selected(figures, access, lambda row: row["kind"] == "negative" and row["queries"]["fuap-t"] is not None)
        values = np.array([row["queries"]["fuap-t"] for row in asked])
        shares = (f"{(values <= level).mean():.1%}" for level in (0.05, 0.01, 1e-3, 1e-6))
        table.append([f"t-test of FUAP, {words}, {UNIVERSAL} queries, {UNIVERSAL_VICTIMS} victims", *shares])
    own = p_of(rows, "finding")
    table.append(["the finding", *(f"{(own <= level + 1e-12).mean():.1%}" for level in (0.05, 0.01)), "-", "-"])
    return table


def power_rows(figures: Mapping[str, Any]) -> list[list[str]]:
    """Share of derived models found at alpha 0.05."""
    table = []
    for task in sorted({row["task"] for row in figures["rows"] if row["kind"] == "positive"}):
        for access in ("logits", "label"):
            rows = selected(figures, access, lambda row, task=task: row["task"] == task)  # type: ignore[misc]
            ways = [f"{(p_of(rows, way) <= 0.05).mean():.0%}" for way in WAYS]
            table.append([task, "scores" if access == "logits" else "labels", str(len(rows)), *ways])
    return table


def page(figures: Mapping[str, Any]) -> str:
    """docs/validation.md."""
    facts = figures["facts"]
    count = sum(row["victim"] == 0 and row["access"] == "label" and row["kind"] == "negative" for row in figures["rows"])
    head = ["innocents", "models", *(f"alpha {alpha:g}" for alpha in ALPHAS)]
    lines = [
        "# Validation: how often independent models are called derived",
        "",
        "```text",
        "onnxaudit zoo build --data FASHION-MNIST --recipe docs/validation.toml -o zoo-validation",
        "python docs/validation.py zoo-validation",
        "```",
        "",
        f"These commands wrote this page. {count} independent networks of five architectures, half of them trained on the",
        f"victim's own data, are judged against {facts['victims']} victims, each with {facts['references']} references, and",
        f"{facts['siblings']} siblings of its own, 100 queries a scheme. No innocent took part in crafting or calibration.",
        "",
        "Each cell is the share accused, over all victims; in brackets the exact 95 % limits (Clopper-Pearson) for the first",
        "victim alone, whose innocents are independent trials, and the lowest and highest share of any victim. The promise is",
        "about the mean over victims; one victim may lie more or less centrally.",
        "",
        "What to read in it: the finding accuses far fewer independent models than alpha, whoever trained them on what; the",
        "tolerance is what protects honest twins, half of whom the plain rank accuses. With siblings twins are accused at",
        "most at alpha, and extracted models are found. The rates hold over all innocents and victims, not in each group:",
        "with siblings models of the least accurate third are accused more often than others, the most accurate hardly ever.",
        "",
    ]
    for access, words in (("logits", "scores"), ("label", "labels only")):
        for way, title in WAYS.items():
            rows = [
                [name, str(sum(row["victim"] == 0 for row in rows)), *rates(rows, way)] for name, rows in groups(figures, access)
            ]
            lines += [f"## {title.replace('**', '')}, {words}", "", markdown_table(head, rows), ""]
    lines += [
        "## What tests on single queries would say",
        "",
        "A binomial test asks whether the suspect matches more queries than the references' mean rate explains, as if",
        "queries were independent. They are not: a model that matches one boundary query matches others. FUAP's t-test asks",
        "whether the suspect's views of the queries are closer to the victim's than those of 33 references are, as if a model's",
        "views were independent. They tell how sure one is of this model's mean, not how means differ between innocents, so any",
        "innocent above the references' mean is accused. (Against views that were frozen from scores, labels never look close.)",
        "Share of the same innocents accused; binomial tests with labels, all victims:",
        "",
        markdown_table(["test", "nominal 5 %", "1 %", "0.1 %", "0.0001 %"], query_level_rows(figures)),
        "",
        "## Power",
        "",
        "Share of derived models called derived at alpha 0.05, first victim:",
        "",
        markdown_table(["task", "access", "models", *(title.replace("**", "") for title in WAYS.values())], power_rows(figures)),
        "",
        "![Share of innocents accused against alpha](validation/calibration.png)",
        "",
    ]
    return "\n".join(lines)


def draw(figures: Mapping[str, Any], folder: Path) -> None:
    """Share accused against alpha, for innocents in all and for honest twins."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    alphas = np.linspace(0, 0.2, 201)
    kinds = {"independent models": "negative", "honest twins": "sibling"}
    for axes, (title, kind) in zip(panels, kinds.items(), strict=True):
        rows = selected(figures, "logits", lambda row, kind=kind: row["kind"] == kind)  # type: ignore[misc]
        for way, words in WAYS.items():
            values = p_of(rows, way)
            axes.plot(alphas, [(values <= alpha + 1e-12).mean() for alpha in alphas], label=words.replace("**", ""), lw=1.4)
        axes.plot(alphas, alphas, color="0.6", lw=1, ls="--")
        axes.set(title=title, xlabel="alpha", ylim=(0, 0.3))
    panels[0].set_ylabel("share accused (scores)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(folder / "calibration.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
