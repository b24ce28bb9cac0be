"""A training ends at what is not finite: a loss, a gradient, a weight; its checkpoints are good."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.rank_checks import assert_ranks_stop
from support.training import make_trainer, make_triplets, numbered
from transformers import TrainerCallback

from axolotl_tspin.errors import TSpinError

SHORT = ("loss", "gradient", "weights")


class At(TrainerCallback):
    """Does something at the beginning of an optimizer step (from 1), or once it is made."""

    def __init__(self, step, begin=None, end=None):
        self.step, self.begin, self.end = step, begin, end

    def on_step_begin(self, args, state, control, **kwargs):
        if self.begin and state.global_step + 1 == self.step:
            self.begin()

    def on_step_end(self, args, state, control, **kwargs):
        if self.end and state.global_step == self.step:
            self.end()


def ruin(model, what, step, value=math.nan):
    """Make the callback that plants a value in a step's loss, gradient, or weights."""
    weight = model.model.layers[1].mlp.up_proj.weight

    def in_loss():
        head = model.lm_head
        once = head.register_forward_pre_hook(
            lambda module, args: (once.remove(), args[0] * value)[1:]
        )

    def in_gradient():
        once = weight.register_hook(lambda gradient: (once.remove(), gradient * value)[1])

    def in_weights():
        with torch.no_grad():
            weight[5, 7] = value

    if what == "weights":
        return At(step, end=in_weights)
    return At(step, begin=in_loss if what == "loss" else in_gradient)


def trainer_of(tmp_path, **kwargs):
    """Eight steps of two micro-batches, padded so that the head's module is called."""
    settings = {"logging_steps": 100, "t_spin_layout": "padded", **kwargs}
    trainer = make_trainer(tmp_path, make_triplets(32), 2, 2, **settings)
    trainer.args.learning_rate = 1e-3
    # There is none; the Trainer saves it beside the policy.
    trainer.data_collator.tokenizer.save_pretrained = lambda folder: ()
    return trainer


def assert_checkpoints_are_good(folder: Path, steps: list[int]) -> None:
    assert {path.name for path in folder.iterdir()} == {f"checkpoint-{step}" for step in steps}
    for step in steps:
        weights = load_file(folder / f"checkpoint-{step}" / "model.safetensors")
        assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("logged", [1, 100])
def test_a_step_that_is_not_finite_ends_the_training(tmp_path, what, value, logged):
    """In the step itself where it is logged, in the next one elsewhere."""
    begun = []
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2, logging_steps=logged)
    trainer.add_callback(ruin(trainer.model, what, 3, value))
    trainer.add_callback(At(4, begin=lambda: begun.append(4)))
    with pytest.raises(TSpinError) as error:
        trainer.train()
    assert str(error.value).startswith(f"the {what} is not finite at step 3, so the training was")
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-2'}." in str(error.value)
    assert trainer.state.global_step == 3 and begun == ([] if logged == 1 else [4])
    assert_checkpoints_are_good(tmp_path, [2])


def test_a_step_is_judged_before_its_checkpoint_is_saved(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
    trainer.add_callback(ruin(trainer.model, "gradient", 4))
    with pytest.raises(TSpinError, match="the gradient is not finite at step 4"):
        trainer.train()
    assert_checkpoints_are_good(tmp_path, [2])


@pytest.mark.parametrize("best", [False, True])
def test_weights_are_judged_before_a_checkpoint_is_saved(tmp_path, best):
    """Also before an evaluation, the first of which finds the best ones so far."""
    evaluates = {"eval_strategy": "steps", "eval_steps": 4, "metric_for_best_model": "eval_loss"}
    how = {"save_strategy": "best", **evaluates} if best else {"save_strategy": "steps"}
    trainer = trainer_of(tmp_path, save_steps=2, **how)
    trainer.add_callback(ruin(trainer.model, "weights", 4))
    with pytest.raises(TSpinError) as error:
        trainer.train()
    name = r"the weights `model.layers.1.mlp.up_proj.weight` are not finite at step 4"
    assert str(error.value).startswith(name)
    assert_checkpoints_are_good(tmp_path, [] if best else [2])


@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
def test_the_last_step_is_judged_without_a_log_or_a_checkpoint(tmp_path, what):
    trainer = trainer_of(tmp_path)
    trainer.add_callback(ruin(trainer.model, what, 8))
    with pytest.raises(TSpinError, match=r"not finite at step 8.*There is no checkpoint"):
        trainer.train()


def test_the_first_steps_loss_is_the_start_policys(tmp_path):
    trainer = trainer_of(tmp_path)
    with torch.no_grad():
        trainer.model.lm_head.weight[4] = math.nan
    with pytest.raises(TSpinError, match=r"at step 1.*No weight had changed yet"):
        trainer.train()


@pytest.mark.parametrize("kwargs", [{"save_strategy": "steps", "save_steps": 3}, {}])
def test_a_training_with_finite_numbers_is_not_stopped(tmp_path, kwargs):
    trainer = trainer_of(tmp_path, logging_steps=1, eval_strategy="epoch", **kwargs)
    trainer.train()
    assert trainer.state.global_step == 8
    assert_checkpoints_are_good(tmp_path, [3, 6, 8] if kwargs else [])


def test_a_checkpoint_keeps_its_rate_as_the_error_says(tmp_path):
    """A lowered rate counts once the checkpoints are gone."""
    rates = []
    for rate, resumes in ((1e-3, None), (1e-5, "checkpoint-4"), (1e-5, None)):
        trainer = trainer_of(tmp_path, logging_steps=1, save_strategy="steps", save_steps=4)
        trainer.args.learning_rate = rate
        if rate == 1e-3:
            trainer.add_callback(ruin(trainer.model, "gradient", 6))
            with pytest.raises(TSpinError, match="goes on with the rate that it was saved with"):
                trainer.train()
            continue
        trainer.train(resume_from_checkpoint=resumes and str(tmp_path / resumes))
        assert trainer.state.global_step == 8
        rates.append(trainer.state.log_history[-2]["learning_rate"])
    assert rates == [1e-3, 1e-5]


def test_scores_that_are_not_finite_are_refused(tmp_path):
    rows = numbered(make_triplets(5))
    trainer = trainer_of(tmp_path)
    assert len(trainer.score(rows)) == 5
    with torch.no_grad():
        trainer.model.lm_head.weight[4] = math.inf
    with pytest.raises(TSpinError, match="the log-probabilities of 5 of 5 triplets are not finite"):
        trainer.score(rows)


def test_ranks_stop_together_where_one_alone_is_not_finite(tmp_path):
    assert_ranks_stop(tmp_path, ["ddp", "fsdp2"])
