"""A suspect's runtime in a process of its own, confined as far as the platform allows."""
