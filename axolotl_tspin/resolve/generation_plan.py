"""The work of a generation step."""

from typing import Any, NamedTuple

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.resolve.policies import check_start_policy
from axolotl_tspin.run.directory import Due, Policy, RunDirectory


class GenerationPlan(NamedTuple):
    """Work of a generation step.

    Attributes:
        with_test: True if the `test_datasets` lack responses too.
        held_out: `t_spin.held_out`, or 0 where the YAML has `test_datasets`.
        val_set_size: Axolotl's key.
    """

    config: TSpinConfig
    run: RunDirectory
    due: Due
    policy: Policy
    initial_policy: Policy
    revision: str | None
    identity: dict[str, Any]
    with_test: bool
    held_out: int | str
    val_set_size: float | None

    @property
    def is_final(self) -> bool:
        """True if only the final policy's responses to held-out prompts are left to sample."""
        return self.due.iteration == self.config.iterations

    @property
    def splits(self) -> list[str]:
        """The splits to sample. Held-out prompts come first: they are few, and show whether the
        policy is worth more."""
        return ["test"] if self.is_final else self.run.splits()[::-1]

    def check_policy(self) -> str:
        """Compute the fingerprint of the policy to sample from; see `check_start_policy`."""
        return check_start_policy(
            self.run,
            self.due.iteration,
            self.policy,
            self.revision,
            allow_foreign=self.config.allow_foreign,
        )


def final_samples_are_due(config: TSpinConfig, run: RunDirectory) -> bool:
    """True if only the final policy's responses to held-out prompts are left to sample."""
    return config.iteration is None and run.lacks_final_samples(config.iterations)
