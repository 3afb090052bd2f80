"""How inputs get into models and what their labels mean: the conventions in use, and the search among them. Pure."""
