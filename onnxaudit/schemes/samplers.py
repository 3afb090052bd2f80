"""Query samplers by name: what each needs and tells of its queries. Their code, in craft/, is imported when one is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Flag, auto
from types import MappingProxyType

from onnxaudit.schemes.contrast import COLUMNS


class Need(Flag):
    """What crafting takes beyond the victim."""

    NOTHING = 0
    GRADIENTS = auto()
    DATA = auto()
    LABELS = auto()
    IMAGES = auto()
    SURROGATES = auto()
    REFERENCES = auto()
    SIBLINGS = auto()


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """A query sampler by name. source: "module:function". columns: what it tells of each query. cost: of sampling, in words."""

    source: str
    needs: Need
    cost: str
    columns: frozenset[str] = frozenset()


_DATA, _LABELS, _IMAGES, _GRADIENTS = Need.DATA, Need.DATA | Need.LABELS, Need.DATA | Need.IMAGES, Need.GRADIENTS
_SURROGATES, _REFERENCES = Need.SURROGATES, Need.REFERENCES
_TRUTH, _PAIR, _LIME, _VIEW = frozenset({"truth"}), frozenset({"pair"}), frozenset({"group", "mask"}), frozenset({"view"})
_NEURON, _RATIO = frozenset({"layer", "neuron", "sizes"}), frozenset(COLUMNS)
_FREE, _FORWARD, _STEP, _STEPS, _LONG = "none", "one pass", "one step", "some hundred steps", "thousands of steps"

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "uniform": Sampler("onnxaudit.craft.samplers.natural:sample_uniform", _DATA, _FREE),
        "noise": Sampler("onnxaudit.craft.samplers.natural:sample_noise", Need.NOTHING, _FREE),
        "negative": Sampler("onnxaudit.craft.samplers.natural:sample_negative", _LABELS, _FORWARD, _TRUTH),
        "shared-negative": Sampler(
            "onnxaudit.craft.samplers.shared_errors:sample_shared_negative", _LABELS | _SURROGATES, "trains surrogates", _TRUTH
        ),
        "cutmix": Sampler("onnxaudit.craft.samplers.cutmix:sample_cutmix", _IMAGES, _FREE),
        "boundary": Sampler("onnxaudit.craft.samplers.boundary:sample_boundary", _GRADIENTS, _STEPS),
        "fgsm": Sampler("onnxaudit.craft.samplers.gradient_sign:sample_fgsm", _GRADIENTS | _DATA, _STEP),
        "igsm": Sampler("onnxaudit.craft.samplers.gradient_sign:sample_igsm", _GRADIENTS | _DATA, _STEPS),
        "cw-l2": Sampler("onnxaudit.craft.samplers.carlini:sample_cw_l2", _GRADIENTS | _DATA, _LONG),
        "deepfool": Sampler("onnxaudit.craft.samplers.deepfool:sample_deepfool", _GRADIENTS | _DATA, "a few steps a class"),
        "adversarial": Sampler("onnxaudit.craft.samplers.adversarial:sample_adversarial", _GRADIENTS | _DATA, "40 steps", _PAIR),
        "negative-adversarial": Sampler(
            "onnxaudit.craft.samplers.adversarial:sample_negative_adversarial", _GRADIENTS | _LABELS, "40 steps", _PAIR
        ),
        "certain-adversarial": Sampler(
            "onnxaudit.craft.samplers.adversarial:sample_certain_adversarial", _GRADIENTS | _LABELS, "10 steps", _TRUTH
        ),
        "uap": Sampler("onnxaudit.craft.samplers.universal:sample_uap", _GRADIENTS | _DATA, "some passes over the data", _VIEW),
        "modeldiff": Sampler("onnxaudit.craft.samplers.modeldiff:sample_modeldiff", _GRADIENTS | _DATA, "50 steps", _PAIR),
        "subsample": Sampler("onnxaudit.craft.samplers.subsampling:sample_subsample", _IMAGES, "segmentation", _LIME),
        "negative-subsample": Sampler(
            "onnxaudit.craft.samplers.subsampling:sample_negative_subsample", _IMAGES | Need.LABELS, "segmentation", _LIME
        ),
        "negative-augment": Sampler("onnxaudit.craft.samplers.natural:sample_negative_augment", _IMAGES | Need.LABELS, _FORWARD),
        "benign": Sampler("onnxaudit.craft.samplers.benign:sample_benign", _LABELS, _FORWARD, _TRUTH),
        "conferrable": Sampler(
            "onnxaudit.craft.samplers.conferrable:sample_conferrable",
            _GRADIENTS | _LABELS | _SURROGATES | _REFERENCES,
            "trains many models, some hundred steps through all",
        ),
        "transferable": Sampler(
            "onnxaudit.craft.samplers.transferable:sample_transferable", _GRADIENTS | _DATA, "40 steps, 10 copies"
        ),
        "activation-boundary": Sampler("onnxaudit.craft.samplers.activation:sample_activation_boundary", _GRADIENTS, _STEPS),
        "meta": Sampler(
            "onnxaudit.craft.samplers.meta:sample_meta",
            _GRADIENTS | _SURROGATES | _REFERENCES,
            "trains many models, hundreds of steps",
        ),
        "sensitive": Sampler("onnxaudit.craft.samplers.sensitive:sample_sensitive", _GRADIENTS | _DATA, _STEPS),
        "gif-points": Sampler("onnxaudit.craft.samplers.inside:sample_gif_points", _GRADIENTS | _DATA, _FREE),
        "disagreement": Sampler(
            "onnxaudit.craft.samplers.disagreement:sample_disagreement", _DATA | Need.SIBLINGS, "passes through all siblings"
        ),
        "contrast": Sampler(
            "onnxaudit.craft.samplers.contrast:sample_contrast",
            _DATA | _SURROGATES | _REFERENCES,
            "trains two models a surrogate, one pass through all",
            _RATIO,
        ),
        "neuron-fuzz": Sampler("onnxaudit.craft.samplers.inside:sample_neuron_fuzz", _GRADIENTS | _DATA, _STEPS, _NEURON),
    }
)
