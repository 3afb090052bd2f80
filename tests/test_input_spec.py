"""InputSpec.encode, the one place that turns canonical queries into what a model takes, against plain NumPy formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxaudit.errors import UsageError
from onnxaudit.suspect import InputSpec, Queries, Target

RNG = np.random.default_rng(11)
COLOUR: NDArray[np.uint8] = RNG.integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
GREY: NDArray[np.uint8] = RNG.integers(0, 256, (5, 6, 4, 1), dtype=np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def planes(images: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(images, 3, 1)


def test_default_is_planes_in_zero_to_one() -> None:
    batch = InputSpec((6, 4, 3)).encode(COLOUR)
    assert batch.dtype == np.float32
    assert batch.shape == (5, 3, 6, 4)
    assert batch.flags.c_contiguous
    assert np.allclose(batch, planes(COLOUR) / 255, atol=1e-7)


def test_nhwc_keeps_the_order_of_axes() -> None:
    assert np.allclose(InputSpec((6, 4, 3), "NHWC").encode(COLOUR), COLOUR / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("scale", "mean", "std"),
    [(1.0, (), ()), (1 / 255, (0.5,), (0.5,)), (1 / 255, MEAN, STD), (1.0, (123.7, 116.3, 103.5), ()), (2 / 255, (), (0.25,))],
)
def test_scale_then_mean_then_std(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    expected = (COLOUR * scale - np.array(mean or (0,))) / np.array(std or (1,))
    batch = InputSpec((6, 4, 3), scale=scale, mean=mean, std=std).encode(COLOUR)
    assert np.allclose(batch, planes(expected), rtol=1e-5, atol=1e-5)
    nhwc = InputSpec((6, 4, 3), "NHWC", scale=scale, mean=mean, std=std).encode(COLOUR)
    assert np.array_equal(batch, planes(nhwc))


def test_bgr_is_reversed_before_mean_and_std_are_taken_in_the_model_s_order() -> None:
    batch = InputSpec((6, 4, 3), "NHWC", mean=MEAN, std=STD, channels="BGR").encode(COLOUR)
    assert np.allclose(batch, (COLOUR[..., ::-1] / 255 - np.array(MEAN)) / np.array(STD), atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 1e-6), ("float64", 1e-6)])
def test_float_types(dtype: str, tolerance: float) -> None:
    batch = InputSpec((6, 4, 3), dtype=dtype, mean=(0.5,), std=(0.5,)).encode(COLOUR)
    assert batch.dtype == np.dtype(dtype)
    assert np.abs(batch.astype(np.float64) - planes(COLOUR / 127.5 - 1)).max() < tolerance


def test_uint8_models_see_the_pixels_as_they_are() -> None:
    """Scaling is inside such a model: scale, mean and std of the victim's pipeline must not be applied again."""
    batch = InputSpec((6, 4, 3), "NHWC", "uint8", mean=MEAN, std=STD).encode(COLOUR)
    assert batch.dtype == np.uint8
    assert np.array_equal(batch, COLOUR)


def test_grey_is_repeated_for_colour_models() -> None:
    expected = np.concatenate([GREY] * 3, axis=3) / 255
    assert np.allclose(InputSpec((6, 4, 3)).encode(GREY), planes(expected), atol=1e-7)
    normalised = InputSpec((6, 4, 3), mean=MEAN, std=STD).encode(GREY)
    assert np.allclose(normalised, planes((expected - np.array(MEAN)) / np.array(STD)), atol=1e-5)


def test_images_are_flattened_in_the_order_rows_columns_channels() -> None:
    batch = InputSpec((72,), "NC", mean=MEAN, std=STD).encode(COLOUR)
    assert batch.shape == (5, 72)
    assert np.allclose(batch, ((COLOUR / 255 - np.array(MEAN)) / np.array(STD)).reshape(5, -1), atol=1e-5)
    swapped = InputSpec((72,), "NC", channels="BGR").encode(COLOUR)
    assert np.allclose(swapped, (COLOUR[..., ::-1] / 255).reshape(5, -1), atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_vectors_pass_as_they_are(dtype: str) -> None:
    vectors: NDArray[np.float32] = RNG.normal(size=(4, 7)).astype(np.float32)
    batch = InputSpec((7,), "NC", dtype, scale=1 / 255, mean=(3.0,)).encode(vectors)
    assert batch.dtype == np.dtype(dtype)
    assert np.array_equal(batch, vectors.astype(dtype))


@pytest.mark.parametrize("size", [(12, 8), (9, 7), (3, 2), (6, 9), (5, 4), (1, 1), (224, 160)])
@pytest.mark.parametrize("images", [COLOUR, GREY])
def test_resize_is_plain_bilinear(images: NDArray[np.uint8], size: tuple[int, int]) -> None:
    import skimage.transform

    resize: Any = skimage.transform.resize
    channels = images.shape[3]
    batch = InputSpec((*size, channels), "NHWC", scale=1.0).encode(images)
    expected = np.stack(
        [
            resize(image.astype(np.float64), (*size, channels), order=1, mode="edge", anti_aliasing=False, preserve_range=True)
            for image in images
        ]
    )
    assert batch.shape == expected.shape
    assert np.abs(batch - expected).max() < 2e-3  # of 255


def test_resize_to_the_same_size_changes_nothing_and_uint8_models_get_whole_pixels() -> None:
    assert np.array_equal(InputSpec((6, 4, 3), "NHWC", "uint8").encode(COLOUR), COLOUR)
    resized = InputSpec((9, 7, 3), "NHWC", "uint8").encode(COLOUR)
    exact = InputSpec((9, 7, 3), "NHWC", scale=1.0).encode(COLOUR).astype(np.float64)
    assert resized.dtype == np.uint8
    assert np.abs(resized.astype(np.float64) - exact).max() <= 0.5 + 1e-3


def test_resize_comes_before_scaling_colours_and_layout() -> None:
    spec = InputSpec((9, 7, 3), mean=MEAN, std=STD, channels="BGR")
    plain = InputSpec((9, 7, 3), "NHWC", scale=1.0).encode(COLOUR).astype(np.float64)
    expected = (plain[..., ::-1] / 255 - np.array(MEAN)) / np.array(STD)
    assert np.allclose(spec.encode(COLOUR), planes(expected), atol=1e-4)


def test_queries_are_not_changed() -> None:
    kept = COLOUR.copy()
    kept.flags.writeable = False
    for spec in (InputSpec((6, 4, 3), "NHWC", "uint8"), InputSpec((9, 7, 3)), InputSpec((72,), "NC", mean=(0.5,))):
        spec.encode(kept)
    assert np.array_equal(kept, COLOUR)


@pytest.mark.parametrize(
    ("spec", "queries", "said"),
    [
        (InputSpec((6, 4, 1)), COLOUR, "6x4x1.*6x4x3"),
        (InputSpec((6, 4, 4)), COLOUR, "6x4x4.*6x4x3"),
        (InputSpec((71,), "NC"), COLOUR, "71.*6x4x3"),
        (InputSpec((7,), "NC"), np.zeros((2, 8), np.float32), "7 values.*vectors of 8"),
        (InputSpec((6, 4, 3)), np.zeros((2, 72), np.float32), "6x4x3 values.*vectors of 72"),
        (InputSpec((6, 4, 3)), COLOUR[..., 0], "6x4x3.*6x4"),
    ],
)
def test_sizes_that_cannot_be_reconciled_are_the_user_s_to_fix(spec: InputSpec, queries: Queries, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        spec.encode(queries)


def test_what_the_user_says_counts_before_the_signature_and_that_before_the_victim() -> None:
    victim = InputSpec((28, 28, 1), "NCHW", mean=(0.5,), std=(0.25,))
    silent = Target("m.onnx", victim)
    assert silent.input_spec() == victim
    assert silent.input_spec((32, 32, 3), "NHWC", "uint8") == InputSpec((32, 32, 3), "NHWC", "uint8", mean=(0.5,), std=(0.25,))
    said = Target("m.onnx", victim, shape=(8, 8, 3), layout="NCHW", mean=(), scale=1.0, channels="BGR")
    assert said.input_spec((32, 32, 3), "NHWC", "uint8") == InputSpec(
        (8, 8, 3), "NCHW", "uint8", scale=1.0, mean=(), std=(0.25,), channels="BGR"
    )
