"""Fingerprinting schemes: Q (sampled in craft/), R and D here, and the catalogue that composes them."""
