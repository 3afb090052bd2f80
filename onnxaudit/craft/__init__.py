"""Crafting (torch): load the victim and the data, sample queries, train references."""
