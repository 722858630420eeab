"""make bench: `qfpass bench` on SmolLM2-135M with filters of essays; takes the options of that."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass
from qfpass.tools import cli

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import essays_text, filters_folder, weights_folder

SEQUENCES, LENGTH = 20, 2048  # the paper's


def make_filters() -> None:
    """Filters calibrated on the essays behind the demo's prompt, made once and kept."""
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    text = tokenizer(essays_text(), return_tensors="pt", verbose=False).input_ids[0, 8000:]
    sequences = text[: SEQUENCES * LENGTH].split(LENGTH)
    qfpass.calibrate(model, sequences, description="essays").save(filters_folder())


def main() -> None:
    if not filters_folder().exists():
        make_filters()
    sys.argv[1:] = ["bench", str(weights_folder()), "--filters", str(filters_folder()), *sys.argv[1:]]
    cli.run()


if __name__ == "__main__":
    main()
