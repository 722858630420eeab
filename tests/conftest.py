"""Settings that every test shares."""

import os

import hypothesis
import torch

hypothesis.settings.register_profile(
    "qfpass", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("qfpass")
torch.set_num_threads(2)
