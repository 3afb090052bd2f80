"""Judging schemes on a zoo: queries are crafted once a seed, every model is asked once, all else is arithmetic."""
