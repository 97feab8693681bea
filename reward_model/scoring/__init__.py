"""Scores of conversations, and whether a server gives the same ones."""
