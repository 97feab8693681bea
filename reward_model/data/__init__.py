"""Convert rows from any source to validated pairs. Needs no model, and imports neither torch nor trl."""
