"""make bench: `qfpass bench` on SmolLM2-135M with the demo's filters; takes the options of that."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qfpass.tools import cli

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import essays_text, filters_folder, weights_folder
from quickstart import filters_for


def main() -> None:
    if not filters_folder().exists():
        tokenizer = AutoTokenizer.from_pretrained(weights_folder())
        text = tokenizer(essays_text(), return_tensors="pt", verbose=False).input_ids[0]
        filters_for(AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval(), text)
    sys.argv[1:] = ["bench", str(weights_folder()), "--filters", str(filters_folder()), *sys.argv[1:]]
    cli.run()


if __name__ == "__main__":
    main()
