"""From answers to a report: no suspect, no network, no printing."""
