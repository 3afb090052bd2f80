"""Models to judge on: architectures, training, recipes that derive models, and the benchmark over a zoo."""
