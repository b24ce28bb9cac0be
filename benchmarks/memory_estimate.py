"""Compare the memory estimate of `axolotl t-spin plan` with two measured optimizer steps.

    python benchmarks/memory_estimate.py

Random Llamas of two sizes run on the CPU, each setting in a separate process. The peak is the
resident memory above that of torch and transformers alone. Activations are also counted separately,
as the distinct storages that autograd keeps for the backward pass, without weights. They are not
counted with checkpointing or all logits, where the backward pass allocates more than was kept.
"""

import ctypes
import multiprocessing
import sys

import torch
from peft import LoraConfig, get_peft_model
from step import RANDOM_LLAMAS, status_kib
from transformers import LlamaConfig, LlamaForCausalLM

from axolotl_tspin.planning.memory import (
    estimate_memory,
    model_shape,
    parallel_setting,
)
from axolotl_tspin.planning.micro_batch import largest_micro_batch
from axolotl_tspin.training.attention import STRUCTURED, use_attention
from axolotl_tspin.training.heads import MOST_LOGITS
from axolotl_tspin.training.layout_choice import Choice
from axolotl_tspin.training.layouts import pack_triplets, pad_triplets
from axolotl_tspin.training.logps import triplet_logps
from axolotl_tspin.training.loss import t_spin_loss
from axolotl_tspin.triplets import TripletTokens

SIZES = {
    "23M": LlamaConfig(
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=16384,
        tie_word_embeddings=True,
    ),
    "135M": RANDOM_LLAMAS["llama-135m"],
}
LONGEST = (128, 64, 64)
"""Tokens of prompt, annotated and sampled response."""

SETTINGS = {
    "float32, AdamW": {},
    "float32, RMSProp, accumulated": {"optimizer": "rmsprop", "gradient_accumulation_steps": 2},
    "float32, padded, all logits": {"layout": "padded", "head": "plain"},
    "float32, checkpointing": {"gradient_checkpointing": True},
    "float32, LoRA": {"adapter": "lora"},
    "bfloat16, AdamW": {"bf16": True},
    "bfloat16, checkpointing": {"bf16": True, "gradient_checkpointing": True},
}
MICRO_BATCH_SIZE = 2


def build(size: str, setting: dict) -> torch.nn.Module:
    dtype = torch.bfloat16 if setting.get("bf16") else torch.float32
    model = LlamaForCausalLM(SIZES[size]).to(dtype)
    if setting.get("adapter"):
        lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    return model


def settings_of(name: str) -> tuple[dict, Choice]:
    setting = dict(SETTINGS[name])
    layout = setting.pop("layout", "shared_prefix")
    return setting, Choice(layout, setting.pop("head", "chunked"), "")


def resident(field: str) -> int:
    """Read `VmRSS`, or `VmHWM` for the peak, of this process in bytes."""
    return status_kib(field) * 1024


def loss_of(model: torch.nn.Module, choice: Choice) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 16000, (count,), generator=draw).tolist()

    prompt, annotated, response = LONGEST
    lengths = (prompt, annotated, response, response)
    triplets = [TripletTokens(*map(tokens, lengths)) for _ in range(MICRO_BATCH_SIZE)]
    lay_out = pad_triplets if choice.layout == "padded" else pack_triplets
    logps, _ = triplet_logps(model, lay_out(triplets, pad_token_id=0), head=choice.head)
    return t_spin_loss(*logps.unbind(1), alpha=0.1, beta=0.1).loss.mean()


def saved_by_autograd(model: torch.nn.Module, choice: Choice) -> int:
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model, choice)
    saved = sum(storage.nbytes() for storage in seen.values())
    del loss
    return saved


def measure(size: str, name: str, results) -> None:
    setting, choice = settings_of(name)
    build("23M", {}), torch.ones(64, 64) @ torch.ones(64, 64)  # loads what the first use needs
    before = resident("VmRSS")
    model = build(size, setting)
    model.train()
    use_attention(model, STRUCTURED if choice.layout == "shared_prefix" else "sdpa")
    if setting.get("gradient_checkpointing"):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    kind = torch.optim.RMSprop if setting.get("optimizer") == "rmsprop" else torch.optim.AdamW
    optimizer = kind(trained, lr=1e-6)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # resets the peak
    for _ in range(2):
        for _ in range(setting.get("gradient_accumulation_steps", 1)):
            loss_of(model, choice).backward()
        optimizer.step()
        optimizer.zero_grad()
    peak_size = resident("VmHWM") - before
    results.put((saved_by_autograd(model, choice), peak_size))


def in_a_process(*arguments) -> tuple[int, int]:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=measure, args=(*arguments, results))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{arguments} failed")
    return results.get()


def compared(guess: int, found: int) -> list[str]:
    return [f"{guess / 2**20:.0f}", f"{found / 2**20:.0f}", f"{guess / found - 1:+.0%}"]


def main() -> None:
    MOST_LOGITS["cuda"] = MOST_LOGITS["cpu"]  # the estimate is a GPU's, what is measured a CPU's
    # Return large tensors to the system when they are freed (mallopt's M_MMAP_THRESHOLD).
    ctypes.CDLL("libc.so.6").mallopt(-3, 65536)
    print("| size | setting | activations, MiB | counted | error | peak, MiB | measured | error |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        for name in SETTINGS:
            setting, choice = settings_of(name)
            with torch.device("meta"):
                shape = model_shape(build(size, setting))
            cfg = {"optimizer": "adamw_torch", "cut_cross_entropy": True} | setting
            parallel = parallel_setting(cfg, shape, ranks=1)
            batch = largest_micro_batch(LONGEST, choice, MICRO_BATCH_SIZE)
            estimate = estimate_memory(shape, parallel, batch)
            saved, peak = in_a_process(size, name)
            kept = estimate.activations + estimate.logits
            partly = parallel.checkpointing or choice.head == "plain"
            cells = ["", "", ""] if partly else compared(kept, saved)
            cells += compared(estimate.total, peak)
            print(f"| {size} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
