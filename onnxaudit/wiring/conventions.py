"""How images get into models: the conventions in use, and all wirings of a suspect that they make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from onnxaudit.suspect import InputSpec, Queries

Scaling = tuple[str, float, tuple[float, ...], tuple[float, ...]]
"""Words, scale, mean, std."""
SCALINGS: tuple[Scaling, ...] = (
    ("pixels in [0, 1]", 1 / 255, (), ()),
    ("pixels in [-1, 1]", 1 / 255, (0.5,), (0.5,)),
    ("pixels in [0, 255]", 1.0, (), ()),
    ("ImageNet mean and std", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("CIFAR-10 mean and std", 1 / 255, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ("MNIST mean and std", 1 / 255, (0.1307,), (0.3081,)),
    ("Fashion-MNIST mean and std", 1 / 255, (0.2860,), (0.3530,)),
)
"""The common ways to scale pixels, likeliest first: those that ``craft`` tries on a victim."""
RARER: tuple[Scaling, ...] = (
    ("pixels in [-0.5, 0.5]", 1 / 255, (0.5,), ()),
    ("inverted pixels in [0, 1]", -1 / 255, (-1.0,), ()),
    ("ImageNet's mean taken off pixels in [0, 255]", 1.0, (123.68, 116.779, 103.939), ()),
)
"""Further ways that suspects are met with. ImageNet's mean is given for red, green, blue; other orders reverse it."""


def _nearest(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    rows = ((np.arange(height) + 0.5) * images.shape[1] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * images.shape[2] / width).astype(int)
    return images[:, rows[:, None], columns]


def _padded(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    grown = np.zeros((len(images), height, width, images.shape[3]), np.uint8)
    top, left = (height - images.shape[1]) // 2, (width - images.shape[2]) // 2
    grown[:, top : top + images.shape[1], left : left + images.shape[2]] = images
    return grown


def _cropped(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]


def _resized_and_cropped(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """As networks of ImageNet are tested: scaled to 8/7 of the size, then the middle; on the 8-bit grid in between."""
    larger = InputSpec((round(height * 8 / 7), round(width * 8 / 7), images.shape[3]), "NHWC", scale=1.0)
    return _cropped(np.clip(np.rint(larger.encode(images)), 0, 255).astype(np.uint8), height, width)


def _turned(images: NDArray[np.uint8], _height: int, _width: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images.swapaxes(1, 2))


def _planes(images: NDArray[np.uint8], _height: int, _width: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(images.shape)


FITS: Mapping[str, Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]] = MappingProxyType(
    {
        "nearest": _nearest,
        "padded": _padded,
        "cropped": _cropped,
        "resized and cropped": _resized_and_cropped,
        "turned": _turned,
        "planes": _planes,
    }
)
"""What is done to images before ``InputSpec`` encodes them: uint8 (n, H, W, C), the model's height and width; uint8 out.

turned: rows and columns exchanged. planes: for a model of vectors, that channels come one after the other. Without a fit,
``InputSpec`` resizes by linear interpolation where the size is another.
"""


REFUSED_ONLY = 20.0
"""Log odds against what is only tried where all else is refused."""
RESIZING = ("", "nearest", "resized and cropped", "padded", "cropped")
"""Fits that bring images to another size, "" among them, for that is what ``InputSpec`` does."""
AS_IT_WAS = "as it was"


@dataclass(frozen=True, slots=True)
class Wiring:
    """How canonical queries get into a model. fit: a name of ``FITS``, or "". penalty: log odds against it beforehand."""

    spec: InputSpec
    fit: str = ""
    words: str = AS_IT_WAS
    penalty: float = field(default=0.0, compare=False)

    def fitted(self, queries: Queries) -> Queries:
        """Images brought to the model's size; the rest is the spec's."""
        if not self.fit or queries.dtype != np.uint8:
            return queries
        height, width = self.spec.shape[:2] if len(self.spec.shape) == 3 else queries.shape[1:3]
        return FITS[self.fit](queries.astype(np.uint8, copy=False), height, width)

    @property
    def form(self) -> tuple[str, tuple[int, ...]]:
        """What a model refuses or takes, whatever the numbers are."""
        return self.spec.layout, self.spec.shape


def wirings(now: InputSpec, images: tuple[int, ...]) -> list[Wiring]:
    """The wiring as it is, then all others, likeliest first. images: the shape of a query; vectors have no other wiring."""
    found = [Wiring(now)]
    if len(images) != 3:
        return found
    for (scaling, spec), layout, channels, fit in product(_scaled(now), _layouts(now), _orders(now), _fits(now, images)):
        parts = [words for words, _ in (scaling, layout, channels, fit) if words]
        if parts:
            turned = spec.mean[::-1] if channels[1] != now.channels and spec.scale == 1.0 and len(spec.mean) == 3 else spec.mean
            wired = dataclasses.replace(spec, layout=layout[1] or spec.layout, channels=channels[1], mean=turned)
            against = sum(_against(part) for part in (scaling, layout, channels, fit)) + 0.3 * (len(parts) - 1)
            if layout[0] and now.shape[2] == 1:
                against += REFUSED_ONLY  # one channel is the same numbers in either layout: it helps if the other is refused
            found.append(Wiring(wired, str(fit[1]), ", ".join(parts), against))
    return [found[0], *sorted(found[1:], key=lambda wiring: wiring.penalty)]


_Part = tuple[str, str]
_LIKELY: Mapping[str, float] = MappingProxyType({"NHWC": 1.0, "NCHW": 1.0, "turned": 1.2, "planes": 0.6})


def _against(part: tuple[str, object]) -> float:
    words, value = part
    if not words:
        return 0.0
    place = next((number for number, scaling in enumerate((*SCALINGS, *RARER)) if scaling[0] == words), 0)
    return _LIKELY.get(str(value), 0.6 + 0.05 * place)


def _scaled(now: InputSpec) -> Iterator[tuple[_Part, InputSpec]]:
    """The input as it is scaled now, then otherwise; a model of whole pixels scales them itself."""
    yield ("", ""), now
    channels = now.shape[2] if len(now.shape) == 3 else 1
    for words, scale, mean, std in (*SCALINGS, *RARER) if now.dtype != "uint8" else ():
        spec = dataclasses.replace(now, scale=scale, mean=mean, std=std)
        if len(mean) in (0, 1, channels) and spec != now:
            yield (words, "scale"), spec


def _layouts(now: InputSpec) -> list[_Part]:
    if len(now.shape) != 3:
        return [("", now.layout)]
    other = "NHWC" if now.layout == "NCHW" else "NCHW"
    return [("", now.layout), (other, other)]


def _orders(now: InputSpec) -> list[_Part]:
    if len(now.shape) != 3 or now.shape[2] != 3:
        return [("", now.channels)]
    other = "BGR" if now.channels == "RGB" else "RGB"
    return [("", now.channels), (other, other)]


def _fits(now: InputSpec, images: tuple[int, ...]) -> list[_Part]:
    """What can be done to the size, once for each result that differs."""
    height, width, channels = images
    none = [("", "")]
    if len(now.shape) != 3:
        return [*none, ("channels one after the other", "planes")] if channels == 3 else none
    if now.shape[:2] == (height, width):
        return [*none, ("rows and columns exchanged", "turned")] if height == width else none
    names = ["nearest", "resized and cropped"]
    names += ["padded"] if now.shape[0] >= height and now.shape[1] >= width else []
    names += ["cropped"] if now.shape[0] <= height and now.shape[1] <= width else []
    return [*none, *((f"images {name}", name) for name in names)]
