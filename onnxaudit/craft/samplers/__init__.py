"""Query samplers, one file a family: from the victim, data and other models to canonical queries (torch)."""
