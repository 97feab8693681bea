"""Rows of any source to checked pairs. Needs no model: imports neither torch nor trl."""
