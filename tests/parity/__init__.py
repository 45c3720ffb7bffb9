"""Comparisons with what the authors' own code computed."""
