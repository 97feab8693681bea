"""How good the scores of labelled pairs are."""
