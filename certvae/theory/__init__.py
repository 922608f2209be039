"""The mathematics: formulas, bounds, tests and sums on tensors. No trainer, no file, no logger."""
