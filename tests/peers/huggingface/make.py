"""A Vision Transformer as Hugging Face's libraries keep it, and its scores as an ONNX file: make.py FOLDER NOISE SIZE NAME…

Runs in the server's environment. NOISE moves every weight by so much of the spread of its tensor: 0 is the victim, a little is a
copy that was trained further. Pictures are SIZE on a side; there are as many classes as names.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor  # type: ignore[import-not-found]


class Scores(torch.nn.Module):
    """Pixels to logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> Any:
        """(n, 3, SIZE, SIZE), as the image processor makes them, to (n, classes)."""
        return self.model(pixel_values=pixels).logits


def classifier(noise: float, size: int, names: list[str]) -> Any:
    """The model; its weights follow from the noise alone, and are wide enough that pictures differ in their class."""
    config = ViTConfig(
        image_size=size,
        patch_size=4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    torch.manual_seed(1)
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.normal_()
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * weight.std() * noise)
    return model


if __name__ == "__main__":
    folder, noise, size, names = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    model = classifier(noise, size, names)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    axes = {"x": {0: "n"}, "logits": {0: "n"}}
    example = (torch.zeros(1, 3, size, size),)
    path = str(folder / "model.onnx")
    torch.onnx.export(Scores(model), example, path, dynamo=False, input_names=["x"], output_names=["logits"], dynamic_axes=axes)
