"""What callbacks share: a batch read whole, an evaluation that ends in a certificate, loggers, the auxiliary loss."""
