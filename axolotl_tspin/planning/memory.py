"""GPU memory that one rank needs in training, from the model's shape and the YAML's settings.

Plain arithmetic, for decoder models of the Llama family (gated MLP, RMSNorm, SDPA or
flash attention); no weights are read. The CUDA context (about 0.5 GB), fragmentation, and the
memory of NCCL and kernels are not counted. benchmarks/memory_estimate.md has the error against
measured peaks.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.planning.micro_batch import MicroBatch
from axolotl_tspin.training.heads import MOST_LOGITS

STATES = {
    "adamw": 2.0,
    "adam": 2.0,
    "ademamix": 3.0,
    "rmsprop": 1.0,
    "adagrad": 1.0,
    "lion": 1.0,
    "muon": 1.0,
    "sgd": 0.0,
    "adafactor": 0.0,
}
"""Tensors of a parameter's size that an optimizer keeps (RMSProp and SGD without momentum)."""

NF4_BYTES = 0.5 + (1 + 4 / 256) / 64
"""Bytes of a parameter in 4 bits: one scale byte per block of 64, with double quantisation."""

QUANTISED_STATE = {"8bit": 1 + 4 / 256, "4bit": 0.5 + 4 / 128}
"""Bytes per element of an optimizer's quantised state, including the scales of its blocks."""

DEEPSPEED_BUCKET = 5e8
"""Elements of DeepSpeed's communication buckets if the JSON names no size."""

DEEPSPEED_LIVE = 1e9
"""Parameters that ZeRO-3 keeps gathered if the JSON names no stage3_max_live_parameters."""


class ModelShape(NamedTuple):
    """Sizes of a model that the estimate needs.

    Attributes:
        parameters: number of all parameters, tied ones once, an adapter's included.
        trained: number of parameters that get gradients.
        in_layers, trained_in_layers: the same two for the decoder layers only; the rest is
            embeddings and head.
        largest_layer: number of parameters of the largest decoder layer.
        layers, hidden, intermediate, vocabulary: as the configuration names them; `intermediate`
            counts the experts that one token passes through.
        query_width, kv_width: elements of one token in all query heads, and in all key heads.
    """

    parameters: int
    trained: int
    in_layers: int
    trained_in_layers: int
    largest_layer: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    query_width: int
    kv_width: int


class ParallelSetting(NamedTuple):
    """Data types, sharding and checkpointing of a rank in training.

    Attributes:
        name: "DDP", "ZeRO-2", "FSDP2", …
        ranks: number of ranks in data parallel.
        shards: number of ranks that share what is sharded.
        sharded: those of "weights", "gradients" and "optimizer" that are sharded.
        offloaded: those of "weights" and "optimizer" that are in host memory.
        element: bytes of a weight and of an activation.
        trained_element: bytes of a trained weight and of its gradient.
        end_element: bytes of a weight of embeddings and head.
        frozen_element: bytes of a frozen weight in the layers (less when quantised).
        master: bytes of a trained parameter's float32 copy (DeepSpeed's), else 0.
        state: bytes of a trained parameter's optimizer states.
        buffers: bytes of communication buckets, and of weights gathered at a time.
        checkpointing: True if activations are recomputed layer by layer.
        activations_offloaded: True if the activations that checkpointing keeps are in host memory.
        accumulation: micro-batches per optimizer step.
    """

    name: str
    ranks: int
    shards: int
    sharded: frozenset[str]
    offloaded: frozenset[str]
    element: int
    trained_element: int
    end_element: int
    frozen_element: float
    master: int
    state: float
    buffers: int
    checkpointing: bool
    activations_offloaded: bool
    accumulation: int


class MemoryEstimate(NamedTuple):
    """Bytes of one rank; `total` is the peak. It is less than the sum if gradients take the place
    of activations."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    total: int


def model_shape(model: nn.Module) -> ModelShape:
    """Read the shape of a transformers model, or one under PEFT; on the meta device this is free.

    Raises:
        TSpinError: the model has no stack of decoder layers.
    """
    config: Any = model.config
    config = config.get_text_config()
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    depth = config.num_hidden_layers
    layers = next((stack for stack in stacks if len(stack) == depth), None)
    if layers is None:
        raise TSpinError(
            f"no memory estimate for {type(model).__name__}: it has no list of {depth} layers"
        )
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    experts = getattr(config, "num_experts_per_tok", None)
    width = (experts and getattr(config, "moe_intermediate_size", None)) or config.intermediate_size
    return ModelShape(
        parameters=_count(model),
        trained=_count_trained(model),
        in_layers=_count(layers),
        trained_in_layers=_count_trained(layers),
        largest_layer=max(map(_count, layers)),
        layers=depth,
        hidden=config.hidden_size,
        intermediate=width * (experts or 1),
        vocabulary=config.vocab_size,
        query_width=heads * size,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * size,
    )


def parallel_setting(cfg: Mapping[str, Any], shape: ModelShape, ranks: int) -> ParallelSetting:
    """Read the setting from Axolotl's validated configuration.

    Raises:
        TSpinError: the DeepSpeed JSON cannot be read.
    """
    element = 2 if cfg.get("bf16") or cfg.get("fp16") else 4
    frozen: float = element
    if cfg.get("load_in_4bit"):
        frozen = NF4_BYTES
    elif cfg.get("load_in_8bit"):
        frozen = 1.0
    sharded: set[str] = set()
    offloaded: set[str] = set()
    name, shards, master = "one process", 1, 0
    trained_element = end_element = element
    buffers = 0.0
    if cfg.get("deepspeed"):
        zero = _deepspeed(cfg["deepspeed"]).get("zero_optimization", {})
        stage = int(zero.get("stage", 0))
        name, shards, master = f"ZeRO-{stage}", ranks, 4
        sharded = set(("optimizer", "gradients", "weights")[:stage])
        for part, key in (("optimizer", "offload_optimizer"), ("weights", "offload_param")):
            if (zero.get(key) or {}).get("device", "none") != "none":
                offloaded.add(part)
        buffers = _deepspeed_buffers(zero, stage, shape, element)
    elif cfg.get("fsdp_config") or cfg.get("fsdp"):
        fsdp = cfg.get("fsdp_config") or {}
        name, shards = "FSDP2", cfg.get("dp_shard_size") or ranks
        sharded = {"weights", "gradients", "optimizer"}
        if fsdp.get("offload_params"):
            offloaded = {"weights", "optimizer"}
        ends = shape.parameters - shape.in_layers
        buffers = element * (2 * shape.largest_layer + ends) + 4 * shape.largest_layer
    else:
        # Here Axolotl keeps embeddings, head and norms in float32, unless the attention
        # implementation or an adapter needs a single data type.
        flash = str(cfg.get("attn_implementation") or "").startswith("flash")
        if not (cfg.get("adapter") or flash or cfg.get("cut_cross_entropy")):
            end_element = 4
        if cfg.get("adapter"):
            trained_element = 4  # PEFT's default for any base model
        if ranks > 1:
            name, buffers = "DDP", float(shape.trained * trained_element)
    return ParallelSetting(
        name=name,
        ranks=ranks,
        shards=shards,
        sharded=frozenset(sharded),
        offloaded=frozenset(offloaded),
        element=element,
        trained_element=trained_element,
        end_element=end_element,
        frozen_element=frozen,
        master=master,
        state=state_bytes(str(cfg.get("optimizer") or "adamw"), 4 if master else trained_element),
        buffers=int(buffers),
        checkpointing=bool(cfg.get("gradient_checkpointing")),
        activations_offloaded=bool(cfg.get("activation_offloading"))
        or cfg.get("gradient_checkpointing") in ("offload", "offload_disk"),
        accumulation=cfg.get("gradient_accumulation_steps") or 1,
    )


def state_bytes(optimizer: str, element: int) -> float:
    """Count the bytes that an optimizer keeps for one parameter; an unknown one counts as AdamW.

    Args:
        optimizer: Axolotl's name, such as `adamw_torch_fused` or `paged_adamw_8bit`.
        element: bytes of a state's element if the optimizer does not quantise it.
    """
    parts = optimizer.lower().split("_")
    states = next((STATES[part] for part in parts if part in STATES), STATES["adamw"])
    quantised = next((QUANTISED_STATE[part] for part in parts if part in QUANTISED_STATE), element)
    return states * quantised


def estimate_memory(
    shape: ModelShape, setting: ParallelSetting, batch: MicroBatch
) -> MemoryEstimate:
    """Estimate the peak of an optimizer step after the first, and its parts."""

    def share(part: str) -> float:
        if part in setting.offloaded:
            return 0.0
        return 1 / setting.shards if part in setting.sharded else 1.0

    weights = weight_bytes(shape, setting) * share("weights")
    gradients = shape.trained * setting.trained_element * share("gradients")
    optimizer = shape.trained * (setting.master + setting.state) * share("optimizer")
    activations = activation_bytes(shape, setting, batch)
    logits = logit_bytes(shape, setting, batch)
    # Gradients replace activations, beginning with the head's. With accumulation, the gradients of
    # earlier micro-batches are already there.
    passing: float = activations + logits + head_gradient_bytes(shape, setting, batch)
    passing = passing + gradients if setting.accumulation > 1 else max(gradients, passing)
    return MemoryEstimate(
        weights=int(weights),
        gradients=int(gradients),
        optimizer=int(optimizer),
        activations=activations,
        logits=logits,
        buffers=setting.buffers,
        total=int(weights + optimizer + setting.buffers + passing),
    )


def weight_bytes(shape: ModelShape, setting: ParallelSetting) -> float:
    """Count the bytes of the whole model. A quantised load quantises only the layers' frozen
    weights."""
    frozen_in_layers = shape.in_layers - shape.trained_in_layers
    ends = shape.parameters - shape.in_layers
    return (
        frozen_in_layers * setting.frozen_element
        + shape.trained_in_layers * setting.trained_element
        + ends * setting.end_element
    )


def layer_bytes(shape: ModelShape, element: int) -> int:
    """Count the bytes that one layer saves per token for its backward pass.

    Two norms: their input (in float32 when `element` is 2), the normed and the scaled one.
    Attention: queries, and its output twice (as computed, and as the projection reads it); keys and
    values are `key_bytes`. The gated MLP: gate, up, activated gate and their product.
    """
    norms = 2 * (4 + 2 * element) * shape.hidden
    attention = element * 3 * shape.query_width
    return norms + attention + element * 4 * shape.intermediate


def key_bytes(shape: ModelShape, element: int) -> int:
    """Count the bytes that one layer saves per key: the key and its value."""
    return element * 2 * shape.kv_width


def activation_bytes(shape: ModelShape, setting: ParallelSetting, batch: MicroBatch) -> int:
    """Count the activations' bytes of one micro-batch. With checkpointing these are each layer's
    input, and the layer that is being recomputed."""
    element = setting.element
    layer = batch.tokens * layer_bytes(shape, element) + batch.keys * key_bytes(shape, element)
    if not setting.checkpointing:
        return shape.layers * layer
    kept = 0 if setting.activations_offloaded else shape.layers * shape.hidden * element
    return batch.tokens * kept + layer


def logit_bytes(shape: ModelShape, setting: ParallelSetting, batch: MicroBatch) -> int:
    """Count the head's bytes: one chunk of logits, which becomes their gradient, and the predicting
    positions' hidden states with their gradient; or (plain) all logits, with cross-entropy's three
    tensors."""
    if batch.head == "plain":
        return shape.vocabulary * (batch.tokens * setting.element + batch.predicting * 12)
    rows = min(batch.predicting, rows_in_chunk(shape))
    return setting.element * (rows * shape.vocabulary + 2 * batch.predicting * shape.hidden)


def head_gradient_bytes(shape: ModelShape, setting: ParallelSetting, batch: MicroBatch) -> int:
    """Count the bytes that the gradient of the head's weight takes, made while all activations
    still exist.

    One product is made in the activations' type, then cast to the weight's, of which a copy was
    cast for the products. Several chunks' products are added up in float32; sharded, in their own
    type.
    """
    size = min(shape.vocabulary * shape.hidden, shape.trained - shape.trained_in_layers)
    several = batch.head == "chunked" and batch.predicting > rows_in_chunk(shape)
    product, weight = setting.element, max(setting.trained_element, setting.end_element)
    if "weights" in setting.sharded:
        return size * product * (2 if several else 1)
    copy = cast = 0
    if weight != product:
        copy, cast = product, weight
    if several:
        return size * (copy + 4 + (product if product < 4 else 0))
    return size * (copy + product + cast)


def rows_in_chunk(shape: ModelShape) -> int:
    """Count the positions of the chunked head's largest chunk on a GPU."""
    return max(MOST_LOGITS["cuda"] // shape.vocabulary, 1)


def _deepspeed(config: Any) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    try:
        return json.loads(Path(config).read_text())
    except (OSError, ValueError) as error:
        raise TSpinError(f"`deepspeed: {config}` cannot be read as JSON: {error}") from error


def _deepspeed_buffers(
    zero: Mapping[str, Any], stage: int, shape: ModelShape, element: int
) -> float:
    """Count the bytes of the buckets for reduction, twice if communication overlaps, and for
    gathering weights; under ZeRO-3, of the weights that are gathered at a time."""

    def elements(key: str, default: float, automatic: float) -> float:
        value = zero.get(key, default)
        return automatic if value == "auto" else float(value)

    square = float(shape.hidden) ** 2  # transformers' value for "auto"
    reduce = min(elements("reduce_bucket_size", DEEPSPEED_BUCKET, square), shape.trained)
    reduce *= 2 if zero.get("overlap_comm", stage == 3) else 1
    if stage < 3:
        gather = elements("allgather_bucket_size", DEEPSPEED_BUCKET, DEEPSPEED_BUCKET)
        return element * (reduce + min(gather, shape.trained))
    live = elements("stage3_max_live_parameters", DEEPSPEED_LIVE, DEEPSPEED_LIVE)
    return element * (reduce + min(live, shape.parameters))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _count_trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
