"""What train.py calls."""
