"""Scanning many suspects against several bundles."""
