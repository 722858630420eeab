"""Training of filters by gradients, so that a compressed model predicts what the full model predicts."""
