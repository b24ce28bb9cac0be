"""The triplet loss as a Hugging Face Trainer (torch and transformers only)."""

import dataclasses
import logging
import math
import statistics
from collections.abc import Iterator, Sized
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.training.collator import TripletCollator
from axolotl_tspin.training.finite import (
    FP16_PATIENCE,
    FiniteWatch,
    NotFinite,
    non_finite_parameter,
    stopped,
)
from axolotl_tspin.training.gradient_norms import GradientParts, obstacle_to_measuring
from axolotl_tspin.training.layout_check import CheckedLayout
from axolotl_tspin.training.layouts import BatchLayout
from axolotl_tspin.training.logps import triplet_logps
from axolotl_tspin.training.loss import TripletLoss, t_spin_loss
from axolotl_tspin.training.metrics import RunningMeans, saturation_metrics, triplet_metrics
from axolotl_tspin.training.policies import unwrapped

LOG = logging.getLogger(__name__)


class TripletTrainer(Trainer):
    """Trains on batches of triplets (`layouts`) with the loss of eq. 7.

    `args` has the fields of `arguments.TSpinTrainingArgs`. The loss of an optimizer step is the
    mean over all its triplets, whatever their micro-batches and ranks, also in a partial last
    batch. The layout is chosen for the policy and compared with the plain one on a real triplet
    before the first step; where they differ, the plain one is used.
    """

    # compute_loss divides by the step's own number of triplets (get_batch_samples), so the
    # Trainer must not divide by the accumulation steps as well. transformers < 5.20 reads this
    # from `model_accepts_loss_kwargs`, newer ones from `loss_is_scaled_for_ga`.
    loss_is_scaled_for_ga = True
    args: Any  # TrainingArguments joined with arguments.TSpinTrainingArgs

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self._refuse_uneven_ranks()
        self._train_means = RunningMeans()
        self._eval_means = RunningMeans()
        self._scored: list[tuple[Tensor, Tensor]] | None = None
        self._gradient_parts: GradientParts | None = None
        self._gradient_norms: list[dict[str, float]] = []
        self._watch = FiniteWatch(self.args.device, FP16_PATIENCE if self.args.fp16 else 0)
        if not self.args.fp16:
            # It would hide what ends the training, and read every micro-batch's loss.
            self.args.logging_nan_inf_filter = False
        self.layout = CheckedLayout(
            self.model,
            self.args.t_spin_layout,
            compiled=self.args.torch_compile,
            lowest=self._lowest,
        )
        self._tell_collators()
        obstacle = obstacle_to_measuring(self) if self.args.t_spin_gradient_norms else None
        if obstacle:
            raise TSpinError(
                f"`t_spin.gradient_norms` does not go with this training: {obstacle}. Remove it"
            )
        if self.is_world_process_zero():
            LOG.info("T-SPIN layout: %s (%s)", self.layout.choice.layout, self.layout.choice.reason)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does.

        Raises:
            TSpinError: the checkpoints could not be resumed from; a loss, the gradient or a weight
                is not finite.
        """
        self._refuse_partial_checkpoints()
        return super().train(*args, **kwargs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute Σ over the batch's triplets / triplets of the optimizer step × ranks, a scalar.

        The factor is there because ranks average their gradients. Without `num_items_in_batch`
        (evaluation) the loss is the batch's mean.
        """
        inputs = self._in_checked_layout(model, inputs)
        logps, counts = triplet_logps(model, inputs, head=self.layout.choice.head)
        counted = inputs["layout"].counted
        logps, counts = logps[:counted], counts[:counted]
        reference_logps = inputs.get("reference_logps")
        if reference_logps is not None:
            reference_logps = reference_logps[:counted]
        losses = self._losses(logps, reference_logps)
        metrics = triplet_metrics(losses, logps, counts, self.args.t_spin_alpha, reference_logps)
        metrics |= saturation_metrics(
            losses,
            alpha=self.args.t_spin_alpha,
            beta=self.args.t_spin_beta,
            loss=self.args.t_spin_loss,
        )
        if num_items_in_batch is None:
            loss = losses.loss.mean()
        else:
            self._train_means.add(metrics)
            loss = losses.loss.sum() / num_items_in_batch * self.accelerator.num_processes
        outputs = {"loss": losses.loss, "metrics": metrics, "logps": logps}
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run the Trainer's step. Before it, in every `t_spin_gradient_norms`-th optimizer step,
        measure the gradients of the loss's two terms."""
        every = self.args.t_spin_gradient_norms
        if every and self.state.global_step % every == 0:
            self._measure_gradients(model, self._prepare_inputs(inputs), num_items_in_batch)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._watch.add_loss(loss)
        return loss

    def score(self, dataset: Any) -> dict[int, list[float]]:
        """Score triplets under the current policy, on all ranks together.

        Args:
            dataset: rows as the collator takes them, with a distinct number in `row`.

        Returns:
            Row number → sums of log-probabilities in nats in the order of `RESPONSES`; every rank
            gets all rows.

        Raises:
            TSpinError: a sum is not finite.
        """
        self._scored = []
        try:
            super().evaluation_loop(
                self.get_eval_dataloader(dataset), "Scoring triplets", prediction_loss_only=True
            )
            scores = {
                row: sums
                for rows, logps in self._scored
                for row, sums in zip(rows.tolist(), logps.tolist(), strict=True)
            }
        finally:
            self._scored = None
            self._eval_means = RunningMeans()
        bad = sum(not all(map(math.isfinite, sums)) for sums in scores.values())
        if bad:
            step = self.state.global_step
            what = f"the log-probabilities of {bad} of {len(scores)} triplets are"
            raise stopped(what, step, self.args, untrained=step == 0)
        return scores

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor]:
        """Get the micro-batches of one optimizer step, and its number of triplets on all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            batches[-1]["layout"] = self._without_repeated(batches[-1]["layout"])
        triplets = torch.tensor([sum(batch["layout"].counted for batch in batches)], device=device)
        sums = self._summed(torch.cat([triplets, self._watch.counts()]))
        self._watch.send(sums[1:])
        return batches, sums[0]

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Compute the batch's mean loss; its metrics go to `evaluation_loop`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if self._scored is not None:
            scored = self.accelerator.gather_for_metrics((inputs["rows"], outputs["logps"]))
            self._scored.append((scored[0].cpu(), scored[1].cpu()))
        metrics = {"loss": outputs["loss"].float(), **outputs["metrics"]}
        # gather_for_metrics drops the rows that were repeated to fill a rank's last batch.
        gathered = self.accelerator.gather_for_metrics(torch.stack([*metrics.values()], dim=1))
        self._eval_means.add(dict(zip(metrics, gathered.unbind(dim=1), strict=True)))
        return loss, None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run the Trainer's loop, and add every metric's mean over the data set's triplets."""
        output = super().evaluation_loop(
            dataloader,
            description,
            prediction_loss_only=True,
            ignore_keys=ignore_keys,
            metric_key_prefix=metric_key_prefix,
        )
        totals = self._eval_means.totals()
        if totals is None:
            return output
        means = self._eval_means.means(totals)
        means = {f"{metric_key_prefix}_{name}": mean for name, mean in means.items()}
        return output._replace(metrics={**(output.metrics or {}), **means})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the training metrics' means over the logging interval and over all ranks."""
        totals = self._train_means.totals()
        if "loss" in logs and totals is not None:
            logs.update(self._train_means.means(self.accelerator.reduce(totals, reduction="sum")))
            for name in self._gradient_norms[0] if self._gradient_norms else ():
                logs[name] = statistics.fmean(norms[name] for norms in self._gradient_norms)
            self._gradient_norms = []
        # Axolotl 0.19 adds exp(loss); a triplet loss has no perplexity.
        for name in ("ppl", "eval_ppl"):
            logs.pop(name, None)
        super().log(logs, start_time)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Get the norm, once in every optimizer step, and judge the step before."""
        norm = super()._get_grad_norm(*args, **kwargs)
        self._watch.add_gradient(norm, self.state.global_step + 1)
        self._stop_at(self._watch.judge_sent())
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save as the Trainer does, once all that is judged is finite."""
        # An evaluation may find a new best model, which is then saved.
        saves = self.control.should_save or self.control.should_evaluate
        if saves or self.control.should_log:
            self._stop_unless_finite(weights=saves)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._stop_unless_finite(weights=True)
        return super()._finalize_training(*args, **kwargs)

    def _stop_unless_finite(self, *, weights: bool) -> None:
        self._stop_at(self._watch.judge_now(self._summed))
        if weights:
            name = next(filter(None, gather_object([non_finite_parameter(self.model)])), None)
            if name:
                what = f"the weights `{name}` are"
                raise stopped(what, self.state.global_step, self.args, untrained=False)

    def _stop_at(self, found: NotFinite | None) -> None:
        if found:
            what = f"the {found.what} is"
            raise stopped(what, found.step, self.args, untrained=found.step == 1)

    def _summed(self, counts: Tensor) -> Tensor:
        return self.accelerator.reduce(counts, reduction="sum")

    def _refuse_partial_checkpoints(self) -> None:
        """Refuse checkpoints in which accelerate writes rank 0's part of an adapter as if it were
        the whole. On resuming, every rank would get that part."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if (
            plugin is not None
            and plugin.fsdp_version == 2
            and "FULL_STATE_DICT" in str(plugin.state_dict_type)
            and hasattr(self.model, "peft_config")
            and self.args.save_strategy != "no"
            and self.accelerator.num_processes > 1
        ):
            raise TSpinError(
                "FSDP2 with `state_dict_type: FULL_STATE_DICT` writes checkpoints that hold only "
                "one rank's part of an adapter. Set, under `fsdp_config`, `state_dict_type: "
                "SHARDED_STATE_DICT` and `final_state_dict_type: FULL_STATE_DICT`; or "
                '`save_strategy: "no"`, for no checkpoints before the end'
            )

    def _refuse_uneven_ranks(self) -> None:
        if self.accelerator.num_processes == 1:
            return
        if not self.accelerator.even_batches:
            raise TSpinError(
                "`accelerator_config: even_batches: false` gives some ranks fewer batches than "
                "others, which would then wait without end; leave it out (the triplets that fill "
                "the last batch do not count in the loss)"
            )
        if self.accelerator.dispatch_batches:
            raise TSpinError(
                "`accelerator_config: dispatch_batches: true` cuts batches between triplets' rows; "
                "leave it out, so that every rank reads its own batches"
            )

    def _without_repeated(self, layout: BatchLayout) -> BatchLayout:
        """Mark the triplets that accelerate repeated in the layout of the batch read last.

        accelerate fills the last batches of an epoch with the first triplets, so that every rank
        gets equally many. The ranks' batches follow one another in the data.
        """
        ranks = self.accelerator.num_processes
        # `gradient_state.remainder` is wrong in a resumed epoch.
        ended = self.accelerator.gradient_state.end_of_dataloader
        if ranks == 1 or not ended or self.args.dataloader_drop_last:
            return layout
        triplets = len(layout.responses)
        whole = triplets * ranks
        assert isinstance(self.train_dataset, Sized)
        remainder = len(self.train_dataset) % whole or whole
        counted = remainder - self.accelerator.process_index * triplets
        return dataclasses.replace(layout, repeated=triplets - min(max(counted, 0), triplets))

    def _losses(self, logps: Tensor, reference_logps: Tensor | None) -> TripletLoss:
        return t_spin_loss(
            *logps.unbind(dim=1),
            alpha=self.args.t_spin_alpha,
            beta=self.args.t_spin_beta,
            loss=self.args.t_spin_loss,
            reference_logps=reference_logps,
        )

    def _measure_gradients(
        self, model: torch.nn.Module, inputs: dict[str, Any], triplets: Tensor | int | None
    ) -> None:
        """Add a micro-batch to the parts of its step's gradient; after the last, keep the norms."""
        inputs = self._in_checked_layout(model, inputs)
        counted = inputs["layout"].counted
        policy = unwrapped(model)
        model.train()
        if self._gradient_parts is None:
            self._gradient_parts = GradientParts(policy)

        def parts() -> tuple[Tensor, Tensor]:
            with self.compute_loss_context_manager():
                logps, _ = triplet_logps(policy, inputs, head=self.layout.choice.head)
                reference = inputs.get("reference_logps")
                losses = self._losses(
                    logps[:counted], None if reference is None else reference[:counted]
                )
            # As in compute_loss, the factor is there because ranks are averaged.
            share = self.accelerator.num_processes / triplets
            historical = self.args.t_spin_beta * losses.historical.sum() * share
            return losses.current.sum() * share, historical

        self._gradient_parts.add(parts)
        if self.accelerator.sync_gradients:
            norms = self._gradient_parts.norms(
                lambda gradient: self.accelerator.reduce(gradient, reduction="mean")
            )
            self._gradient_parts = None
            self._gradient_norms.append({f"grad_norm/{part}": norm for part, norm in norms.items()})

    def _tell_collators(self) -> None:
        for collator in (self.data_collator, getattr(self, "eval_data_collator", None)):
            if isinstance(collator, TripletCollator):
                collator.layout = self.layout.choice.layout
                collator.max_tokens_per_row = self.args.t_spin_max_tokens_per_row

    def _in_checked_layout(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch in the layout in use, which is checked before the first step."""
        before = self.layout.choice
        self.layout.check(model, batch, self._compute_dtype(), log=self.is_world_process_zero())
        if self.layout.choice != before:
            self._tell_collators()
        laid_out = self.layout.laid_out(batch)
        return batch if laid_out is batch else self._prepare_inputs(laid_out)

    def _lowest(self, value: float) -> float:
        """Compute a number's minimum over the ranks."""
        values = torch.tensor([value], device=self.args.device, dtype=torch.float32)
        return self.accelerator.gather(values).min().item()

    def _compute_dtype(self) -> torch.dtype:
        if self.args.bf16:
            return torch.bfloat16
        if self.args.fp16:
            return torch.float16
        assert self.model is not None
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())
