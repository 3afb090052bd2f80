"""A suspect behind a server that modifies inputs and answers: against other implementations, and by the adapters' contract."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from skimage.transform import resize as skimage_resize

from onnxaudit.answers import Access, Answers
from onnxaudit.errors import UsageError
from onnxaudit.registry import check_deployment, deployed_as, open_suspect
from onnxaudit.schemes.compositions import keywords
from onnxaudit.suspect import InputSpec, Queries, Suspect, SuspectCard, Target
from onnxaudit.testing import assert_same, check_adapter
from onnxaudit_adapters.callable import CallableSuspect
from onnxaudit_adapters.deployed import INPUTS, OUTPUTS, Modification
from onnxaudit_adapters.http.loopback import serve_onnx
from tests.models import SHAPE, SPEC, colour_queries, expected_answers, save_onnx

ROOT = Path(__file__).resolve().parent.parent
FASHION = ROOT / "fixtures/fashion/test.npz"
QUERIES = colour_queries()
CARD = SuspectCard("network", "python", InputSpec(SHAPE, "NHWC", "uint8"), 4, max_batch=16)
LOGITS = CallableSuspect(lambda batch: expected_answers(batch).dense(), CARD)
PROBS = CallableSuspect(lambda batch: expected_answers(batch).degrade(Access.PROBS).dense(), CARD)
LABELS = CallableSuspect(lambda batch: expected_answers(batch).labels, CARD)
KEEP_LABELS = ["temper:t=0.5", "temper:t=5", "topk:k=1", "topk:k=3", "topk:k=9", "label", "perturb:sigma=0", "flip-labels:rate=0"]
RANDOM = ["noise:sigma=0.1", "smooth:copies=5,sigma=0.1", "perturb:sigma=0.5", "flip-labels:rate=0.5"]


def written(name: str, kind: Modification) -> str:
    """A step with all of its parameters, as users write it."""
    defaults = ",".join(f"{key}={value}" for key, value in keywords(kind.function).items())
    return f"{name}:{defaults}" if defaults else name


STEPS = {written(name, kind): kind for name, kind in {**INPUTS, **OUTPUTS}.items()}


def fashion(n: int = 50) -> NDArray[np.uint8]:
    """Real grey images (n, 28, 28, 1)."""
    images: NDArray[np.uint8] = np.load(FASHION)["x"][:n]
    return images


def colour(n: int = 20) -> NDArray[np.uint8]:
    """Structured colour images (n, 21, 24, 3): no square, and no even height."""
    small = np.random.default_rng(1).integers(0, 256, (n, 6, 7, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((24, 21), Image.Resampling.BICUBIC)) for image in small])


class Echo(Suspect):
    """Keeps what reaches the model."""

    def __init__(self) -> None:
        self.card = SuspectCard("echo", "python", SPEC, 4)
        self.queries_sent = 0
        self.seen: list[NDArray[np.uint8]] = []
        self.open = True

    def _ask(self, queries: Queries) -> Answers:
        assert queries.dtype == np.uint8
        self.seen.append(queries)  # type: ignore[arg-type]
        self.queries_sent += len(queries)
        return Answers.from_scores(np.tile(np.arange(4.0), (len(queries), 1)))

    def inside(self, kind: str, queries: Queries, **parameters: Any) -> NDArray[np.floating[Any]]:  # noqa: ARG002
        return np.ones((len(queries), 1))

    def close(self) -> None:
        self.open = False


def through(queries: NDArray[np.uint8], *steps: str) -> NDArray[np.uint8]:
    """What reaches a model behind these steps."""
    echo = Echo()
    deployed_as(echo, steps).ask(queries)
    (seen,) = echo.seen
    return seen


def with_pillow(images: NDArray[np.uint8], change: Any) -> NDArray[np.uint8]:
    grey = images.shape[3] == 1
    changed = [np.asarray(change(Image.fromarray(image[..., 0] if grey else image))) for image in images]
    return np.stack(changed).reshape(images.shape)


def in_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality)
    buffer.seek(0)
    return Image.open(buffer)


@pytest.mark.parametrize("images", [fashion(), colour()], ids=["grey", "colour"])
def test_inputs_are_modified_as_pillow_does_it(images: NDArray[np.uint8]) -> None:
    assert (through(images, "equalise") == with_pillow(images, ImageOps.equalize)).all()
    for bits in (7, 5, 3):
        assert (
            through(images, f"posterise:bits={bits}") == with_pillow(images, lambda p, b=bits: ImageOps.posterize(p, b))
        ).all()
    for quality in (90, 30):
        expected = with_pillow(images, lambda p, q=quality: in_jpeg(p, q))
        assert (through(images, f"jpeg:quality={quality}") == expected).all()
    assert (through(images, "flip") == with_pillow(images, ImageOps.mirror)).all()
    moved = with_pillow(images, lambda p: p.transform(p.size, Image.Transform.AFFINE, (1, 0, -2, 0, 1, 1)))[:, :-1, 2:]
    assert (through(images, "shift:right=2,down=-1")[:, :-1, 2:] == moved).all()
    centre = with_pillow(images, lambda p: ImageOps.fit(p, p.size, Image.Resampling.BILINEAR, bleed=0.125))
    assert (through(images, "crop:share=0.75") == centre).all()
    assert (through(images, "crop:share=1") == images).all()


def test_a_shift_repeats_the_edge() -> None:
    images = colour(3)
    shifted = through(images, "shift:right=3,down=-2")
    assert (shifted[:, :-2, 3:] == images[:, 2:, :-3]).all()
    assert (shifted[:, :-2, :3] == images[:, 2:, :1]).all()
    assert (shifted[:, -2:, 3:] == images[:, -1:, :-3]).all()
    assert (through(images, "shift:right=99,down=0") == images[:, :, :1]).all()


def test_blur_is_a_convolution_with_a_gaussian_and_close_to_pillows() -> None:
    images = fashion(10)
    offsets = np.arange(-6, 7)
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    padded = np.pad(images[..., 0].astype(float), ((0, 0), (6, 6), (6, 6)), mode="edge")
    rows = np.apply_along_axis(lambda line: np.convolve(line, kernel, "valid"), 1, padded)
    expected = np.apply_along_axis(lambda line: np.convolve(line, kernel, "valid"), 2, rows)
    assert np.abs(through(images, "blur:sigma=1.5")[..., 0] - expected).max() <= 0.51
    pillow = with_pillow(images, lambda p: p.filter(ImageFilter.GaussianBlur(1.5)))
    assert np.abs(through(images, "blur:sigma=1.5").astype(int) - pillow).mean() < 3  # Pillow's is made of boxes
    assert (through(images, "blur:sigma=0.01") == images).all()


def test_resizing_is_bilinear_as_scikit_images() -> None:
    images = colour()
    both = through(images, "resize:scale=2")
    for image, ours in zip(images, both, strict=True):
        doubled = skimage_resize(image / 255, (42, 48), order=1, mode="edge", anti_aliasing=False)  # type: ignore[no-untyped-call]
        # to double and back, with antialiasing: a triangle over four of the doubled pixels
        weights = np.array([1, 3, 3, 1]) / 8
        padded = np.pad(doubled, ((1, 1), (1, 1), (0, 0)), mode="edge")
        back = sum(weights[a] * weights[b] * padded[a : a + 41 : 2, b : b + 47 : 2] for a in range(4) for b in range(4))
        inner = (slice(1, -1), slice(1, -1))
        assert np.abs(back[inner] * 255 - ours[inner]).max() < 2
    assert (through(images, "resize:scale=1") == images).all()
    assert through(images, "resize:scale=0.01").std(axis=(1, 2)).max() == 0


def test_noise_has_the_size_that_is_said_and_never_leaves_the_grid() -> None:
    grey = np.full((200, 8, 8, 3), 128, np.uint8)
    grey[:, 0, 0, 0] = np.arange(200)  # no two alike
    differences = through(grey, "noise:sigma=0.05").astype(int) - grey
    assert differences.std() == pytest.approx(0.05 * 255, rel=0.02)
    assert abs(differences.mean()) < 0.3
    assert len(np.unique(differences.reshape(200, -1), axis=0)) == 200
    assert not (through(grey, "noise:sigma=0.05,seed=1") == through(grey, "noise:sigma=0.05")).all()
    assert through(np.zeros_like(grey), "noise:sigma=10").max() == 255


def test_inputs_are_modified_in_order_and_answers_after_them() -> None:
    images = colour()
    for first, second in (("equalise", "posterise:bits=3"), ("posterise:bits=3", "equalise"), ("noise", "noise")):
        assert (through(images, first, "label", second) == through(through(images, first), second)).all()
    assert (through(images, "equalise", "posterise:bits=3") != through(images, "posterise:bits=3", "equalise")).any()
    asked = deployed_as(LOGITS, ["temper:t=2", "flip", "topk:k=2", "round:digits=1"]).ask(QUERIES)
    plain = expected_answers(QUERIES[:, :, ::-1])
    softened = Answers.from_scores(plain.dense() / 2, Access.LOGITS).degrade(Access.TOPK, 2)
    assert (asked.classes == softened.classes).all()
    assert softened.scores is not None
    assert asked.scores is not None
    np.testing.assert_allclose(asked.scores, np.round(softened.scores, 1), atol=1e-6)


def test_smoothing_asks_noisy_copies_and_gives_the_mean_of_their_logits() -> None:
    smoothed = deployed_as(LOGITS, ["smooth:sigma=0.1,copies=12", "posterise:bits=6"])
    echo = Echo()
    seeing = deployed_as(echo, ["smooth:sigma=0.1,copies=12", "posterise:bits=6"])
    seeing.ask(QUERIES)
    copies = np.concatenate(echo.seen)
    assert copies.shape == (len(QUERIES) * 12, *SHAPE)
    assert echo.queries_sent == len(copies)
    assert seeing.queries_sent == len(QUERIES)  # type: ignore[attr-defined]
    assert (copies % 4 == 0).all()
    means = expected_answers(copies).dense().reshape(len(QUERIES), 12, 4).mean(axis=1)
    answers = smoothed.ask(QUERIES)
    assert answers.access == Access.LOGITS
    np.testing.assert_allclose(answers.dense(), means, atol=1e-5)
    likely = deployed_as(PROBS, ["smooth:sigma=0.1,copies=12", "posterise:bits=6"]).ask(QUERIES)
    assert likely.access == Access.PROBS
    assert_same(likely, answers.degrade(Access.PROBS))
    voted = deployed_as(LABELS, ["smooth:sigma=0.1,copies=12", "posterise:bits=6"]).ask(QUERIES)
    votes = expected_answers(copies).labels.reshape(len(QUERIES), 12)
    assert voted.labels.tolist() == [max(range(4), key=list(row).count) for row in votes]


def test_smoothing_keeps_the_number_of_inputs_at_once_within_what_the_suspect_takes() -> None:
    card = SuspectCard("network", "python", CARD.input, 4, max_batch=30)
    assert deployed_as(CallableSuspect(len, card), ["smooth:copies=7"]).card.max_batch == 4
    assert deployed_as(CallableSuspect(len, card), ["smooth:copies=7", "smooth:copies=70"]).card.max_batch == 1
    assert deployed_as(CallableSuspect(len, card), ["jpeg"]).card.max_batch == 30
    fixed = SuspectCard("network", "python", CARD.input, 4, batch=5)
    sizes = []

    def five(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append(len(batch))
        return expected_answers(batch).dense()

    check_adapter(lambda: deployed_as(CallableSuspect(five, fixed), ["smooth:copies=7"]), QUERIES[:6])
    check_adapter(lambda: deployed_as(CallableSuspect(five, fixed), ["jpeg"]), QUERIES[:6])
    assert set(sizes) == {5}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("inner", [LOGITS, PROBS, LABELS], ids=["logits", "probs", "labels"])
def test_the_contract_of_suspects_is_kept(inner: Suspect, step: str) -> None:
    if inner is LABELS and step.split(":")[0] in ("round", "temper", "perturb", "refuse-unsure"):
        with pytest.raises(UsageError, match="network gives label only"):
            deployed_as(inner, [step]).ask(QUERIES)
        return
    check_adapter(lambda: deployed_as(inner, [step.replace("copies=100", "copies=3")]), QUERIES)


@pytest.mark.parametrize("step", STEPS)
def test_the_documentation_lists_every_step_of_a_server(step: str) -> None:
    assert f"| `{step}` | {STEPS[step].function.__doc__} |" in (ROOT / "docs/zoo.md").read_text()


def test_the_contract_is_kept_around_a_file(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "network.onnx")
    steps = ["noise:sigma=0.05", "jpeg:quality=60", "smooth:copies=4", "perturb:sigma=0.2", "topk:k=2"]
    check_adapter(lambda: deployed_as(open_suspect(Target(str(path), SPEC, 4, "cpu")), steps), QUERIES)
    with deployed_as(open_suspect(Target(str(path), SPEC, 4, "cpu")), steps) as suspect:
        assert suspect.card.runtime["deployed"] == ", ".join(steps)
        assert suspect.card.runtime["onnxruntime"]
        assert suspect.card.sha256
        assert suspect.ask(QUERIES).access == Access.TOPK


def test_the_contract_is_kept_around_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    steps = ["blur", "smooth:copies=3,sigma=0.1", "round:digits=1"]
    with serve_onnx(str(save_onnx(tmp_path / "network.onnx"))) as url:
        target = Target(url, SPEC, 4)
        expected = deployed_as(LOGITS, steps).ask(QUERIES)
        check_adapter(lambda: deployed_as(open_suspect(target), steps), QUERIES, expected)
        with deployed_as(open_suspect(target), steps) as suspect:
            suspect.ask(QUERIES)
            assert suspect.queries_sent == len(QUERIES)  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", KEEP_LABELS)
@pytest.mark.parametrize("inner", [LOGITS, PROBS])
def test_what_keeps_the_best_class_keeps_every_label(inner: Suspect, step: str) -> None:
    assert (deployed_as(inner, [step]).ask(QUERIES).labels == inner.ask(QUERIES).labels).all()


def test_rounding_keeps_labels_but_for_ties_which_go_to_the_lower_class() -> None:
    rows = np.array([[0.334, 0.338, 0.328], [0.1, 0.3, 0.6], [0.33, 0.331, 0.339]], np.float32)
    given = CallableSuspect(lambda batch: rows[batch[:, 0, 0, 0]], SuspectCard("f", "python", CARD.input, 3))
    queries = np.zeros((3, *SHAPE), np.uint8)
    queries[:, 0, 0, 0] = range(3)
    two = deployed_as(given, ["round"]).ask(queries)
    assert two.labels.tolist() == [1, 2, 2]
    np.testing.assert_allclose(two.dense()[0], np.array([0.33, 0.34, 0.33]) / 1.0, atol=1e-6)
    one = deployed_as(given, ["round:digits=1"]).ask(queries)
    assert one.labels.tolist() == [0, 2, 0]
    np.testing.assert_allclose(one.dense()[0], 1 / 3, atol=1e-6)
    nothing = deployed_as(given, ["round:digits=0"]).ask(queries)
    np.testing.assert_allclose(nothing.dense()[0], 1 / 3, atol=1e-6)
    np.testing.assert_allclose(nothing.dense()[1], [0, 0, 1], atol=1e-6)
    logits = deployed_as(LOGITS, ["round:digits=1"]).ask(QUERIES)
    assert logits.access == Access.LOGITS
    np.testing.assert_allclose(logits.dense(), np.round(expected_answers(QUERIES).dense(), 1), atol=1e-6)
    ranked = deployed_as(given, ["topk:k=3", "round:digits=1"]).ask(queries)  # the list was ranked before it was rounded
    assert ranked.labels.tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("inner", "step", "access"),
    [
        (LOGITS, "jpeg", Access.LOGITS),
        (LOGITS, "round", Access.LOGITS),
        (PROBS, "round", Access.PROBS),
        (LOGITS, "temper", Access.PROBS),
        (LOGITS, "perturb", Access.PROBS),
        (LOGITS, "topk", Access.TOPK),
        (PROBS, "label", Access.LABEL),
        (LABELS, "topk", Access.LABEL),
        (LABELS, "flip-labels", Access.LABEL),
    ],
)
def test_a_step_leaves_the_access_that_it_says(inner: Suspect, step: str, access: Access) -> None:
    assert deployed_as(inner, [step]).ask(QUERIES).access == access


def test_temperature_is_that_of_the_softmax() -> None:
    logits = expected_answers(QUERIES).dense().astype(float)
    expected = np.exp(logits / 3) / np.exp(logits / 3).sum(axis=1, keepdims=True)
    for inner in (LOGITS, PROBS):
        np.testing.assert_allclose(deployed_as(inner, ["temper:t=3"]).ask(QUERIES).dense(), expected, atol=1e-5)


def test_perturbation_has_the_size_that_is_said() -> None:
    queries = np.random.default_rng(2).integers(0, 256, (2000, *SHAPE)).astype(np.uint8)
    logits = np.log(deployed_as(LOGITS, ["perturb:sigma=0.5"]).ask(queries).dense())
    plain = expected_answers(queries).dense()
    change = logits - plain
    change -= change.mean(axis=1, keepdims=True)  # one constant a query is not told
    relative = change / plain.std(axis=1, keepdims=True)
    assert np.sqrt((relative**2).sum(axis=1).mean() / 3) == pytest.approx(0.5, rel=0.03)


def test_labels_are_flipped_at_the_rate_that_is_said_to_every_other_class() -> None:
    queries = np.random.default_rng(2).integers(0, 256, (3000, *SHAPE)).astype(np.uint8)
    given = deployed_as(LOGITS, ["flip-labels:rate=0.2"]).ask(queries)
    plain = LOGITS.ask(queries).labels
    wrong = given.labels != plain
    assert wrong.mean() == pytest.approx(0.2, abs=0.025)
    steps = np.bincount((given.labels - plain)[wrong] % 4, minlength=4)
    assert steps[0] == 0
    assert steps[1:].min() > 0.8 * steps[1:].max()
    assert (deployed_as(LOGITS, ["flip-labels:rate=1"]).ask(queries).labels != plain).all()


@pytest.mark.parametrize("step", RANDOM)
def test_chance_depends_on_the_query_alone(step: str) -> None:
    doubled = np.concatenate([QUERIES, QUERIES[::-1]])
    answers = deployed_as(LOGITS, [step]).ask(doubled).dense()
    assert (answers[: len(QUERIES)] == answers[len(QUERIES) :][::-1]).all()
    again = np.concatenate([deployed_as(LOGITS, [step]).ask(QUERIES[i : i + 1]).dense() for i in range(len(QUERIES))])
    np.testing.assert_allclose(again, answers[: len(QUERIES)], atol=1e-6)
    other = deployed_as(LOGITS, [f"{step},seed=7"]).ask(QUERIES).dense()
    assert np.abs(other - again).max() > 1e-3


def test_what_is_wrapped_is_counted_and_closed_and_shows_no_inside() -> None:
    echo = Echo()
    with deployed_as(deployed_as(echo, ["jpeg"]), ["flip", "topk"]) as suspect:
        suspect.ask(QUERIES)
        assert suspect.queries_sent == len(QUERIES)  # type: ignore[attr-defined]
        assert suspect.inside("layers", QUERIES) is None
        assert suspect.card.runtime["deployed"] == "flip, topk; jpeg"
    assert not echo.open
    assert not hasattr(deployed_as(LOGITS, ["label"]), "queries_sent")
    assert deployed_as(echo, []) is echo


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["png"], r"there is no step 'png' of a deployment. Choose from: jpeg, equalise, .*, flip-labels."),
        ([""], "there is no step ''"),
        (["jpeg:quality=0"], "jpeg: quality must be 1 to 100, not 0"),
        (["jpeg:quality=high"], "jpeg: quality must be a whole number, as 75, not 'high'"),
        (["jpeg:quality=50.5"], "quality must be a whole number"),
        (["jpeg:q=5"], "jpeg has no parameter 'q'. It has: quality."),
        (["jpeg:50"], "parameters are given as name:key=value"),
        (["label:k=1"], "label has no parameter 'k'. It has: none."),
        (["posterise:bits=9"], "bits must be 1 to 8"),
        (["noise:sigma=nan"], "sigma must be a finite number"),
        (["noise:sigma=-1"], "sigma must be 0 to 10"),
        (["noise:seed=-1"], "seed must be 0 to"),
        (["smooth:copies=0"], "copies must be 1 to 1000"),
        (["temper:t=0"], "t must be 0.01 to 1000"),
        (["round:digits=-1"], "digits must be 0 to 7"),
        (["topk:k=0"], "k must be 1 to"),
        (["flip-labels:rate=5"], "rate must be 0 to 1"),
        (["label", "temper"], "the step 'temper' needs scores, and a step before it leaves too few. Change their order."),
        (["topk", "jpeg", "perturb"], "the step 'perturb' needs scores"),
        (["flip-labels", "round"], "the step 'round' needs scores"),
    ],
)
def test_steps_that_make_no_sense_are_refused_before_anything_is_asked(steps: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_deployment(steps)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=message):
        deployed_as(LOGITS, steps)


def test_spaces_do_not_count() -> None:
    assert (through(QUERIES, " jpeg : quality = 40 ") == through(QUERIES, "jpeg:quality=40")).all()


def test_vectors_and_foreign_images_are_refused_by_steps_on_images() -> None:
    vectors = np.zeros((3, 5), np.float32)
    with pytest.raises(UsageError, match=r"the step 'jpeg' takes images of 1 or 3 channels, the queries are 5$"):
        deployed_as(LOGITS, ["jpeg"]).ask(vectors)
    with pytest.raises(UsageError, match="the queries are 8x8x4"):
        deployed_as(LOGITS, ["flip"]).ask(np.zeros((3, 8, 8, 4), np.uint8))
    card = SuspectCard("f", "python", InputSpec((5,), layout="NC"), 5)
    answers = deployed_as(CallableSuspect(lambda batch: batch, card), ["temper:t=1"]).ask(np.eye(5, dtype=np.float32)[:3])
    assert answers.labels.tolist() == [0, 1, 2]


def test_labels_cannot_be_flipped_among_unknown_classes() -> None:
    card = SuspectCard("f", "python", CARD.input)
    with pytest.raises(UsageError, match="the number of classes is not known"):
        deployed_as(CallableSuspect(lambda batch: batch[:, 0, 0, 0] % 3, card), ["flip-labels"]).ask(QUERIES)
