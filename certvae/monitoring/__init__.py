"""Code shared by the callbacks: batch reading, evaluation, loggers and the auxiliary loss."""
