"""Training of filters: how much each key is worth to the model, learned from what the model says."""
