"""What a batch and a module hold: the input, the row's identity, the latent code."""
