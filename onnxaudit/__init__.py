"""Was this classifier derived from mine? Evidence against any deployed format."""
