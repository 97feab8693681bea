"""The parts of train.py: arguments, validation, batches, loss, trainer, checkpoints."""
