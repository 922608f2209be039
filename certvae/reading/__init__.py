"""Reading of inputs, row positions and latent codes from any batch and module."""
