"""Code shared by training and scoring: tokenization, packed rows, attention, checkpoints."""
