"""Watch over losses, gradients and weights that are not finite, on all ranks of a training.

A loss or gradient that is not finite ruins the weights in its optimizer step, so the training ends
there. Only in fp16 such steps are normal: the loss scale has to fall, and these steps are skipped.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from axolotl_tspin.errors import TSpinError

FP16_PATIENCE = 30
"""Optimizer steps in a row that are skipped in fp16 before the training ends. A loss scale of 2¹⁶
is at 1 after 16."""

CHECKED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types of saved weights that are read; others are of frozen weights that were quantised."""


class NotFinite(NamedTuple):
    """What was not finite, and in which optimizer step (counted from 1)."""

    what: Literal["loss", "gradient"]
    step: int


class FiniteWatch:
    """Judges every optimizer step by its losses and its gradient's norm, equally on all ranks.

    A step's counts stay on the device. They are summed over the ranks together with something that
    the next step sums anyway, and read once that step is queued, so that the device has work while
    the host reads.

    Args:
        device: of the losses.
        patience: number of steps in a row that may have a loss or gradient that is not finite.
    """

    def __init__(self, device: torch.device, patience: int) -> None:
        self._patience = patience
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)
        self._step: int | None = None
        self._sent: tuple[int, Tensor, torch.cuda.Event | None] | None = None
        self._in_a_row = [0, 0]

    def add_loss(self, loss: Tensor) -> None:
        """Count a micro-batch's loss (a scalar on the device) if it is not finite."""
        self._counts[0] += ~loss.isfinite()

    def add_gradient(self, norm: Tensor | float | None, step: int) -> None:
        """End an optimizer step with its gradient's norm.

        Args:
            norm: DeepSpeed's is a number, negative if it is not valid; None if it has none.
        """
        if isinstance(norm, Tensor):
            # A rank's part of a norm is enough: the counts are summed over the ranks.
            part = norm.to_local() if hasattr(norm, "to_local") else norm
            self._counts[1] += (~part.isfinite()).to(self._counts.device)
        elif norm is not None and not 0 <= norm < math.inf:
            self._counts[1] += 1
        self._step = step

    def counts(self) -> Tensor:
        """(2,) int64: what this rank has counted since the last reading."""
        return self._counts

    def send(self, summed: Tensor) -> None:
        """Begin to copy the last step's counts to the host.

        Args:
            summed: (2,) `counts` summed over the ranks.
        """
        if self._step is None:
            return
        event = None
        copy = summed.to("cpu", non_blocking=summed.is_cuda)
        if summed.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._sent = (self._step, copy, event)
        self._forget()

    def judge_sent(self) -> NotFinite | None:
        """Judge the step that was sent last."""
        if self._sent is None:
            return None
        step, counts, event = self._sent
        self._sent = None
        if event is not None:
            event.synchronize()
        return self._judge(step, counts)

    def judge_now(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> NotFinite | None:
        """Judge the last step at once, if it was not judged yet; the device waits."""
        if self._step is None:
            return None
        found = self._judge(self._step, sum_over_ranks(self._counts))
        self._forget()
        return found

    def _judge(self, step: int, counts: Tensor) -> NotFinite | None:
        bad = counts.tolist()
        self._in_a_row = [
            n + 1 if found else 0 for n, found in zip(self._in_a_row, bad, strict=True)
        ]
        loss, gradient = (n > self._patience for n in self._in_a_row)
        return NotFinite("loss" if loss else "gradient", step) if loss or gradient else None

    def _forget(self) -> None:
        self._step = None
        self._counts.zero_()


@torch.no_grad()
def non_finite_parameter(model: Any) -> str | None:
    """Name the first trained parameter with a value that is not finite, as far as this rank holds
    it."""
    names, finite = [], []
    for name, parameter in model.named_parameters():
        shard = shard_of(parameter)
        if parameter.requires_grad and shard.numel():
            names.append(name)
            finite.append(_is_finite(shard))
    if not finite:
        return None
    found = torch.stack([flag.to(finite[0].device) for flag in finite]).tolist()
    return next((name for name, good in zip(names, found, strict=True) if not good), None)


def shard_of(parameter: Any) -> Tensor:
    """The part of a parameter that this rank holds: of FSDP2's, of ZeRO-3's, or all of it."""
    if hasattr(parameter, "to_local"):
        return parameter.to_local()
    return getattr(parameter, "ds_tensor", parameter).detach()


def refuse_non_finite_files(folder: Path) -> None:
    """Read a saved policy's weights, or its adapter's, one tensor at a time.

    Raises:
        TSpinError: one has a value that is not finite.
    """
    for file, name, weights in _saved(folder):
        if weights.numel() and weights.dtype in CHECKED and not _is_finite(weights):
            raise TSpinError(
                f"{file}: the weights `{name}` are not finite, so the iteration is not marked "
                "trained. They were finite before they were saved, perhaps in a type of smaller "
                f"range (float16). Move {folder} away, and train again with the same command, with "
                "`bf16` in place of `fp16`. The triplets are kept"
            )


def _saved(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dictionary)
                yield file, name, opened.get_tensor(name)
    for file in () if files else sorted(folder.glob("*model*.bin")):
        for name, weights in torch.load(file, mmap=True, weights_only=True).items():
            yield file, name, weights


def _is_finite(weights: Tensor) -> Tensor:
    """() bool, on the weights' device, without a copy of them. NaN is both least and largest."""
    least, largest = torch.aminmax(weights)
    return least.isfinite() & largest.isfinite()


def stopped(what: str, step: int, args: Any, *, untrained: bool) -> TSpinError:
    """Make the error of a training that ends at an optimizer step because something was not finite.

    Args:
        what: what was not finite, as the beginning of a sentence.
        args: the training's arguments, with those of `TSpinTrainingArgs`.
        untrained: True if no weight had changed yet.
    """
    return TSpinError(
        f"{what} not finite at step {step}, so the training was stopped before anything of it was "
        "saved. "
        f"{_remedy(args, untrained)}{_ranges(args)}. Then train again with the same command "
        "(`axolotl train` or `axolotl t-spin run`). The triplets are kept"
    )


def _remedy(args: Any, untrained: bool) -> str:
    if untrained:
        return (
            "No weight had changed yet, so the policy that the training starts from gives this: "
            "check its weights"
        )
    checkpoint = last_checkpoint(Path(args.output_dir))
    rate = f"`learning_rate` (now {args.learning_rate:g})"
    if checkpoint is None:
        return f"There is no checkpoint. Lower {rate}"
    # A checkpoint's scheduler and optimizer keep the rate that they were saved with.
    return (
        f"The last good checkpoint is {checkpoint}. Training from a checkpoint goes on with the "
        f"rate that it was saved with, whatever the YAML says. So lower {rate}, and move the "
        "checkpoints away"
    )


def _ranges(args: Any) -> str:
    """Name settings whose numbers are out of range sooner than others'."""
    exponential = (
        f", or lower `t_spin.alpha` (now {args.t_spin_alpha:g}): the exponential loss is infinite "
        "at advantages below −88"
    )
    return (", or use `bf16` in place of `fp16`" if args.fp16 else "") + (
        exponential if args.t_spin_loss == "exponential" else ""
    )


def last_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint of a training; its trainer state is written last."""
    found = [
        path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit()
        and (path / "trainer_state.json").exists()
    ]
    return max(found, key=lambda path: int(path.name.split("-")[-1]), default=None)
