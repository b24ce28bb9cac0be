"""What the tests of several ranks train, and with what: shared by the ranks and the tests."""

import os
from collections import Counter
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from torch import nn

from axolotl_tspin.training.arguments import TSpinTrainingArguments as Arguments
from axolotl_tspin.training.layouts import pad_triplets
from axolotl_tspin.training.logps import triplet_logps
from axolotl_tspin.training.loss import t_spin_loss
from axolotl_tspin.training.trainer import TripletTrainer
from axolotl_tspin.triplets import TripletTokens
from support.policies import tiny_llama
from support.training import ALPHA, BETA, Collator

VOCABULARY = 50
MICRO_BATCH = 4
"""Triplets of a micro-batch over all ranks."""
LEARNING_RATE = 0.05
MAX_GRAD_NORM = 5.0
STEPS = 5


class Case(NamedTuple):
    """One training of 5 optimizer steps, whose last global batch is not full."""

    engine: str
    layout: str = "shared_prefix"
    packed: int | None = None
    accumulation: int = 1
    checkpointing: bool = False
    tied: bool = False
    lora: tuple[str, ...] = ()
    optimizer: str = "sgd"
    fault: str = ""

    @property
    def name(self) -> str:
        flags = {
            self.layout: True,
            f"packed{self.packed}": self.packed,
            f"accumulation{self.accumulation}": self.accumulation > 1,
            "checkpointing": self.checkpointing,
            "tied": self.tied,
            f"lora-{'-'.join(self.lora)}": self.lora,
            self.optimizer: self.optimizer != "sgd",
            self.fault: self.fault,
        }
        return "-".join([self.engine, *(flag for flag, on in flags.items() if on)])

    @property
    def dtype(self) -> torch.dtype:
        """DeepSpeed trains in float32 at most."""
        return torch.float32 if self.engine.startswith("zero") else torch.float64

    @property
    def tolerance(self) -> float:
        """Of parameters after 5 steps, against float64. Float32 enters the shared layout through
        the policy's own masks and positions; AdamW divides by roots of small moments."""
        if self.dtype == torch.float64 and self.layout == "padded":
            return 1e-12
        return 2e-4 if self.optimizer == "adamw_torch" else 2e-6

    def triplets(self) -> list[TripletTokens]:
        return make_triplets(MICRO_BATCH * self.accumulation * (STEPS - 1) + MICRO_BATCH + 1)[
            : MICRO_BATCH * (STEPS - 1) + 2 if self.accumulation == 1 else None
        ]


BODY, HEAD = ("q_proj", "down_proj"), ("q_proj", "lm_head")
CASES: dict[int, tuple[Case, ...]] = {
    1: (
        Case("ddp"),
        Case("zero1", "padded", accumulation=2),
        Case("zero2", packed=40, checkpointing=True),
        Case("zero3", tied=True),
        Case("fsdp2", packed=40, accumulation=2),
    ),
    2: (
        Case("ddp", "padded"),
        Case("ddp", packed=40, accumulation=2, checkpointing=True),
        Case("ddp", tied=True, lora=BODY),
        Case("ddp", accumulation=2, lora=HEAD),
        Case("zero1", accumulation=2),
        Case("zero1", "padded", tied=True),
        Case("zero2", "padded", checkpointing=True),
        Case("zero2", packed=40, lora=HEAD, accumulation=2),
        Case("zero2", optimizer="adamw_torch"),
        Case("zero2-offload", packed=40),
        Case("zero3", "padded"),
        Case("zero3", packed=40, accumulation=2, checkpointing=True),
        Case("zero3", tied=True, checkpointing=True),
        Case("zero3", lora=BODY),
        Case("zero3", lora=HEAD, checkpointing=True),
        Case("zero3-offload", accumulation=2),
        Case("fsdp2", "padded", accumulation=2),
        Case("fsdp2", packed=40, checkpointing=True),
        Case("fsdp2", tied=True),
        Case("fsdp2-linear", "padded"),
        Case("fsdp2-linear", checkpointing=True, accumulation=2),
        Case("fsdp2", lora=HEAD),
        Case("fsdp2", lora=BODY, accumulation=2, optimizer="adamw_torch"),
        Case("ddp", fault="fails"),
        Case("ddp", packed=40, accumulation=2, fault="differs"),
        Case("zero3", fault="differs"),
        Case("fsdp2", fault="differs"),
    ),
    4: (
        Case("ddp", packed=40),
        Case("zero1", packed=40, checkpointing=True),
        Case("zero2", accumulation=2, tied=True),
        Case("zero3", packed=40, accumulation=2),
        Case("zero3", "padded", lora=HEAD),
        Case("fsdp2", accumulation=2, checkpointing=True),
        Case("fsdp2", "padded", tied=True),
    ),
}
"""By world size: every engine with every layout, and each property with every kind of engine."""

CHECKPOINTED = tuple(
    Case(engine, optimizer="adamw_torch", lora=lora)
    for engine in ("ddp", "zero2", "zero3", "fsdp2")
    for lora in ((), BODY)
)
"""What is saved, killed and resumed; AdamW, so that the optimizer's state matters."""


def make_triplets(n: int) -> list[TripletTokens]:
    """Every second pair is five times as long, so that with two ranks the second one always has
    more tokens; the third micro-batch of two holds only triplets with y′ = y0; one response is
    empty."""
    generator = torch.Generator().manual_seed(11)

    def ids(low: int, high: int) -> list[int]:
        length = torch.randint(low, high, (), generator=generator)
        return torch.randint(3, VOCABULARY, (int(length),), generator=generator).tolist()

    triplets = []
    for i in range(n):
        longer = 5 if i // 2 % 2 else 1
        y, synthetic, anchor = (ids(longer, 5 * longer) for _ in range(3))
        triplets.append(TripletTokens(ids(2, 6), y, synthetic, anchor))
    for i in (4, 5):
        triplets[i] = triplets[i]._replace(synthetic=triplets[i].proto_synthetic)
    triplets[7] = triplets[7]._replace(synthetic=[])
    return triplets


def make_policy(case: Case, dtype: torch.dtype) -> Any:
    policy: Any = tiny_llama(VOCABULARY)
    if case.tied:
        policy.config.tie_word_embeddings = True
        policy.tie_weights()
    policy = policy.to(dtype)
    if case.lora:
        config = LoraConfig(r=4, lora_alpha=8, target_modules=list(case.lora))
        policy = get_peft_model(policy, config, autocast_adapter_dtype=False)
        generator = torch.Generator().manual_seed(5)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:  # 0 at first, so that A would have no gradient
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data.copy_(0.1 * values)
    return policy


def deepspeed_config(engine: str, accumulation: int) -> dict[str, Any]:
    stage, *offload = engine.removeprefix("zero").split("-")
    zero: dict[str, Any] = {"stage": int(stage)}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload and stage == "3":
        zero["offload_param"] = {"device": "cpu"}
    if stage == "3":
        # Small enough that parameters are sharded and released as those of a large model are.
        zero |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 1,
            "stage3_max_reuse_distance": 1,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    return {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_accumulation_steps": accumulation,
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
    }


def engine_arguments(case: Case) -> dict[str, Any]:
    """Training arguments for an engine on CPU ranks.

    accelerate leaves DeepSpeed and FSDP out on CPU ranks, unless a process state that allows them
    is there already (`use_configured_state`). "fsdp2-linear" shards every linear layer by itself,
    the head among them, and checkpoints in FSDP's own way.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else "cpu:0", which torch.load does not know
    if case.engine == "ddp":
        return {"use_cpu": True, "ddp_backend": "gloo"}
    configured: dict[str, Any] = {"accelerator_config": {"use_configured_state": True}}
    if case.engine.startswith("fsdp2"):
        state = PartialState(backend="gloo")
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        assert state.device == torch.device("cpu")
        each_linear = case.engine == "fsdp2-linear"
        return configured | {
            "fsdp": True,
            "gradient_checkpointing": case.checkpointing and not each_linear,
            "fsdp_config": {
                "version": 2,
                "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer", *["Linear"] * each_linear],
                "activation_checkpointing": case.checkpointing and each_linear,
                "reshard_after_forward": True,
                "cpu_ram_efficient_loading": False,
                "state_dict_type": "SHARDED_STATE_DICT" if case.lora else "FULL_STATE_DICT",
            },
        }
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")
    return configured | {"deepspeed": deepspeed_config(case.engine, case.accumulation)}


def make_trainer(case: Case, out: Any, model: nn.Module | None = None, **kwargs: Any) -> Any:
    world = int(os.environ.get("WORLD_SIZE", 1))
    arguments = {
        "output_dir": str(out),
        "per_device_train_batch_size": MICRO_BATCH // world,
        "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": case.accumulation,
        "gradient_checkpointing": case.checkpointing,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": case.optimizer,
        "max_grad_norm": MAX_GRAD_NORM,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "report_to": [],
        "remove_unused_columns": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "t_spin_alpha": ALPHA,
        "t_spin_beta": BETA,
        "t_spin_layout": case.layout,
        "t_spin_max_tokens_per_row": case.packed,
        "t_spin_gradient_norms": int(case.engine == "ddp"),
    }
    triplets = case.triplets()
    collator = Collator()
    # There is none; the Trainer saves it beside the policy.
    collator.tokenizer = SimpleNamespace(pad_token_id=0, save_pretrained=lambda folder: ())
    return TripletTrainer(
        args=Arguments(**(arguments | engine_arguments(case) | kwargs)),
        model=make_policy(case, case.dtype) if model is None else model,
        train_dataset=triplets,
        eval_dataset=triplets,
        data_collator=collator,
    )


Figures = dict[str, float]


class Reference(NamedTuple):
    """Every step's figures, the norms of its gradient's two parts, the figures of the evaluation
    afterwards, the trained parameters, and every triplet's log-probabilities under them."""

    steps: list[Figures]
    norms: list[Figures]
    evaluation: Figures
    parameters: dict[str, torch.Tensor]
    scores: list[list[float]]


def reference(case: Case) -> Reference:
    """The training of a case in one process, float64, triplet after triplet, by the plain head."""
    policy = make_policy(case, torch.float64)
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    optimizer = (
        torch.optim.SGD(trained.values(), lr=LEARNING_RATE)
        if case.optimizer == "sgd"
        else torch.optim.AdamW(trained.values(), lr=LEARNING_RATE, weight_decay=0.0)
    )
    steps, norms = [], []
    triplets, size = case.triplets(), MICRO_BATCH * case.accumulation
    for start in range(0, len(triplets), size):
        batch = triplets[start : start + size]
        norms.append(part_norms(policy, list(trained.values()), batch))
        steps.append(mean_figures(policy, batch, backward=True))
        norm = nn.utils.clip_grad_norm_(trained.values(), MAX_GRAD_NORM)
        steps[-1]["grad_norm"] = norm.item()
        optimizer.step()
        optimizer.zero_grad()
    evaluation = mean_figures(policy, triplets, backward=False)
    parameters = {name: parameter.detach() for name, parameter in trained.items()}
    with torch.no_grad():
        scores = [plain_logps(policy, triplet)[0].tolist() for triplet in triplets]
    return Reference(steps, norms, evaluation, parameters, scores)


def plain_logps(policy: nn.Module, triplet: TripletTokens) -> torch.Tensor:
    return triplet_logps(policy, pad_triplets([triplet], pad_token_id=0), head="plain")[0]


def part_norms(policy: nn.Module, trained: list, triplets: list[TripletTokens]) -> Figures:
    """‖∇‖ of both terms' means over triplets."""
    totals = [torch.zeros(()), torch.zeros(())]
    for triplet in triplets:
        losses = t_spin_loss(*plain_logps(policy, triplet).unbind(1), alpha=ALPHA, beta=BETA)
        for i, term in enumerate((losses.current, BETA * losses.historical)):
            totals[i] = totals[i] + term.sum() / len(triplets)
    norms = {}
    for name, total in zip(("current", "historical"), totals, strict=True):
        gradients = torch.autograd.grad(total, trained, retain_graph=True, allow_unused=True)
        squares = [g.double().pow(2).sum() for g in gradients if g is not None]
        norms[f"grad_norm/{name}"] = torch.stack(squares).sum().sqrt().item()
    return norms


def mean_figures(policy: nn.Module, triplets: list[TripletTokens], *, backward: bool) -> Figures:
    """The triplets' means; with `backward` also the gradient of the mean loss."""
    totals: Counter[str] = Counter()
    for triplet in triplets:
        logps = plain_logps(policy, triplet)
        losses = t_spin_loss(*logps.unbind(1), alpha=ALPHA, beta=BETA)
        if backward:
            (losses.loss.sum() / len(triplets)).backward()
        y, synthetic, anchor = logps[0].tolist()
        totals.update(
            {
                "loss": losses.loss.item(),
                "loss/current": losses.current.item(),
                "loss/historical": losses.historical.item(),
                "logps/annotated": y,
                "logps/synthetic": synthetic,
                "rewards/proto_synthetic": ALPHA * anchor,
                "rewards/accuracies": float(y > synthetic),
                "advantages/current": y - synthetic,
                "advantages/historical": synthetic - anchor,
            }
        )
    return {name: total / len(triplets) for name, total in totals.items()}
