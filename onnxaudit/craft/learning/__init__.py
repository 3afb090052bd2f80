"""Detectors that are learned while crafting, and frozen (torch)."""
