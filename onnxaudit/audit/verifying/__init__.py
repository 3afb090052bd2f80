"""What another expert does with what was left: recompute, check, craft again."""
