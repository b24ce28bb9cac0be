"""The triplet loss as a Hugging Face Trainer (torch and transformers only)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from axolotl_tspin.logps import triplet_logps
from axolotl_tspin.loss import t_spin_loss
from axolotl_tspin.metrics import RunningMeans, triplet_metrics


class TripletTrainer(Trainer):
    """Trains on the batches of `layouts.pad_triplets` with the loss of eq. 7.

    `args` carries `t_spin_alpha`, `t_spin_beta` and `t_spin_loss`. The loss of an optimizer step
    is the mean over all its triplets, whatever the micro-batches, ranks and last partial batch
    they come in.
    """

    # compute_loss divides by the step's own number of triplets (get_batch_samples), so the
    # Trainer must not divide by the accumulation steps as well. transformers < 5.20 reads this
    # from `model_accepts_loss_kwargs`, newer ones from `loss_is_scaled_for_ga`.
    loss_is_scaled_for_ga = True
    args: Any  # TrainingArguments joined with args.TSpinTrainingArgs

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self._train_means = RunningMeans()
        self._eval_means = RunningMeans()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Σ over the batch's triplets / triplets of the optimizer step × ranks, a scalar.

        Ranks average their gradients, hence the factor. Without `num_items_in_batch`
        (evaluation) it is the batch's mean.
        """
        logps, counts = triplet_logps(model, inputs)
        losses = t_spin_loss(
            *logps.unbind(dim=1),
            alpha=self.args.t_spin_alpha,
            beta=self.args.t_spin_beta,
            loss=self.args.t_spin_loss,
        )
        metrics = triplet_metrics(losses, logps, counts, self.args.t_spin_alpha)
        if num_items_in_batch is None:
            loss = losses.loss.mean()
        else:
            self._train_means.add(metrics)
            loss = losses.loss.sum() / num_items_in_batch * self.accelerator.num_processes
        return (loss, {"loss": losses.loss, "metrics": metrics}) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor]:
        """The micro-batches of one optimizer step, and its triplets summed over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        triplets = torch.tensor(sum(len(batch["labels"]) for batch in batches), device=device)
        return batches, self.accelerator.reduce(triplets, reduction="sum")

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """The batch's mean loss; its metrics go to `evaluation_loop`."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        metrics = {"loss": outputs["loss"].float(), **outputs["metrics"]}
        # gather_for_metrics drops the rows that were repeated to fill the last batch of a rank.
        self._eval_means.add(
            {name: self.accelerator.gather_for_metrics(value) for name, value in metrics.items()}
        )
        return loss, None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The Trainer's loop, with every metric's mean over the data set's triplets."""
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
        """Adds the training metrics' means over the logging interval and over all ranks."""
        totals = self._train_means.totals()
        if "loss" in logs and totals is not None:
            logs.update(self._train_means.means(self.accelerator.reduce(totals, reduction="sum")))
        # Axolotl 0.19 adds exp(loss); a triplet loss has no perplexity.
        for name in ("ppl", "eval_ppl"):
            logs.pop(name, None)
        super().log(logs, start_time)
