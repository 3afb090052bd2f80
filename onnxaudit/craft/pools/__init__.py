"""Models other than the victim: opened from files, or trained, as references and surrogates (torch)."""
