"""What is assumed of an endpoint where its user does not say: for the commands, the use cases and the adapter alike."""

BATCH = 16
"""Queries in a request."""
TIMEOUT = 30.0
"""Seconds to wait for a reply."""
REPEATS = 4
"""Queries that are asked twice, at least, to see whether answers are stable."""
