"""Error rates that are true: the unit is the model, never the query."""
