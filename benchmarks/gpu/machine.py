"""What the results were measured on: the device, the versions, and the rate of matrix products."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from step import product_rate

SIZES = {"full": 8192, "dry": 512}
"""Rows and columns of the matrices."""

PACKAGES = (
    *("torch", "transformers", "accelerate", "peft", "axolotl", "trl"),
    *("vllm", "flash-attn", "kernels", "liger-kernel", "triton", "bitsandbytes"),
)


def run(device: str, sizes: int) -> Iterator[dict[str, Any]]:
    facts: dict[str, Any] = {"device": device, "python": platform.python_version()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "device": properties.name,
            "memory, GiB": round(properties.total_memory / 2**30, 1),
            "compute capability": f"{properties.major}.{properties.minor}",
            "CUDA of torch": torch.version.cuda,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    here = str(Path(__file__).parent)
    facts["commit"] = _output("git", "-C", here, "describe", "--always", "--dirty")
    yield {"facts": facts}
    for dtype in (torch.bfloat16, torch.float32):
        # A CPU's bfloat16 may be very slow, and a dry run does not compute in it.
        if device == "cuda" or dtype == torch.float32:
            rate = product_rate(device, dtype, sizes)
            yield {"facts": {f"matrix products in {dtype}, TFLOP/s": round(rate / 1e12, 3)}}


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    # One line, also where several GPUs answer.
    return done.stdout.strip().partition("\n")[0] or "unknown"
