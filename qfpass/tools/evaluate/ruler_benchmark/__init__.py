"""RULER's synthetic long-context tasks (Hsieh et al. 2024, arXiv 2404.06654), for any model."""
