"""Was this classifier derived from mine? Evidence against any deployed format."""

__version__ = "0.1.0"
