"""Per-layer stores: bounded slots kept by score, exact rings for sliding layers."""
