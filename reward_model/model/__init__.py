"""What training and scoring share: tokens, packed rows, attention, checkpoints."""
