"""The run directory (`output_dir`): its files, and the step that is due according to them.

    t_spin.json                      the manifest: the configuration's identity, versions
    fingerprints.json                fingerprints of weights that were read once
    prompts/train.parquet            the annotated data as token ids, frozen at the first step
    iteration_0/
        selection/train.parquet      the rows to sample, where `select` is not `all`
        responses/train/block_*      sampled responses, block by block
        triplets/train.parquet       complete triplets; their existence ends the generation step
        reference/iteration_0/train.parquet
                                     log-probabilities of an iteration's triplets under the policy
                                     that this one starts from. Only for methods that need them:
                                     there, their existence ends the generation step
        train.yml                    the resolved YAML of the training
        model/                       Axolotl's output folder: checkpoints and the trained policy
        trained.json                 its existence ends the training step
        diagnostics/train.parquet    log-probabilities of triplets under the trained policy
        diagnostics/figures.json     the iteration's figures for status and report
        measured/before/test.parquet log-probabilities of triplets under the policy that the
                                     training starts from, and in `after/` under the trained one
        measured/evidence.json       what the iteration changed, and the verdict
    t_spin.log                       output of the commands that is not for the terminal

`test` files lie next to `train` files where prompts are held out, or the YAML has `test_datasets`.
After the last training, the folder of the iteration that would follow holds responses of the final
policy to the `test` prompts.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.files import temporary_beside, write_json

FORMAT = 3
SPLITS = ("train", "test")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


class Due(NamedTuple):
    """The iteration and the step that a run directory's contents call for."""

    iteration: int
    step: Literal["generate", "train", "done"]


class Policy(NamedTuple):
    """Places of a policy's weights: a model, and the adapter on it if there is one."""

    base_model: str
    adapter_dir: str | None = None

    def __str__(self) -> str:
        return f"{self.base_model} + {self.adapter_dir}" if self.adapter_dir else self.base_model


class Iteration(NamedTuple):
    """The folder of one iteration."""

    path: Path

    def responses(self, split: str) -> Path:
        return self.path / "responses" / split

    def triplets(self, split: str) -> Path:
        return self.path / "triplets" / f"{split}.parquet"

    def selection(self, split: str) -> Path:
        return self.path / "selection" / f"{split}.parquet"

    @property
    def training_config(self) -> Path:
        return self.path / "train.yml"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def trained_marker(self) -> Path:
        return self.path / "trained.json"

    @property
    def scores(self) -> Path:
        return self.path / "diagnostics" / "train.parquet"

    @property
    def figures(self) -> Path:
        return self.path / "diagnostics" / "figures.json"

    def measured(self, when: Literal["before", "after"], split: str) -> Path:
        return self.path / "measured" / when / f"{split}.parquet"

    @property
    def evidence(self) -> Path:
        return self.path / "measured" / "evidence.json"

    def last_checkpoint(self) -> Path | None:
        """Find the newest checkpoint that is complete (its trainer state is written last)."""
        checkpoints = [
            path
            for path in self.model.glob("checkpoint-*")
            if path.name.removeprefix("checkpoint-").isdigit()
            and _is_json(path / "trainer_state.json")
        ]
        return max(checkpoints, key=lambda path: int(path.name.split("-")[-1]), default=None)

    def training_record(self) -> dict[str, Any]:
        """Read the record that `mark_trained` wrote; its log has only finite numbers."""
        record = json.loads(self.trained_marker.read_text())
        if "log_history" in record:
            record["log_history"] = _finite(record["log_history"])
        return record

    def training_log(self) -> tuple[list[dict[str, Any]], tuple[int, int] | None]:
        """Read the trainer's log, and (steps done, steps in all), from a finished training or from
        its last checkpoint."""
        if self.trained_marker.exists():
            history = self.training_record()["log_history"]
            steps = max((entry["step"] for entry in history), default=0)
            return history, (steps, steps)
        checkpoint = self.last_checkpoint()
        if checkpoint:
            state = json.loads((checkpoint / "trainer_state.json").read_text())
            return _finite(state["log_history"]), (state["global_step"], state["max_steps"])
        return [], None

    def check_trained(self) -> None:
        """Raise TSpinError unless all of the policy's files exist."""
        adapter = (self.model / "adapter_config.json").exists() and any(
            (self.model / name).exists() for name in ADAPTER_WEIGHTS
        )
        model = (self.model / "config.json").exists() and any(
            (self.model / name).exists() for name in WEIGHTS
        )
        if not (adapter or model):
            raise TSpinError(
                f"{self.model} holds no trained policy after training: expected config.json with "
                f"one of {', '.join(WEIGHTS)}, or adapter_config.json with one of "
                f"{', '.join(ADAPTER_WEIGHTS)}"
            )

    def mark_trained(self, record: Mapping[str, Any]) -> None:
        """End the training step.

        Args:
            record: at least `policy`, the fingerprint of the trained policy.
        """
        write_json(self.trained_marker, record)


class RunDirectory:
    """A run directory, existing or to be made.

    Args:
        path: the YAML's `output_dir`.
        reference_window: number of earlier iterations whose triplets also need reference
            log-probabilities; None if no iteration needs any.
    """

    def __init__(self, path: str | Path, reference_window: int | None = None) -> None:
        self.path = Path(path)
        self.reference_window = reference_window
        self.manifest = self.path / "t_spin.json"
        self.fingerprints = self.path / "fingerprints.json"

    def exists(self) -> bool:
        """True if a run has begun here, that is, if its prompts are frozen."""
        return self.manifest.exists()

    def prompts(self, split: str) -> Path:
        return self.path / "prompts" / f"{split}.parquet"

    def splits(self) -> list[str]:
        """List the splits that the run has prompts for; prompts that a failed first step left do
        not count."""
        return [split for split in SPLITS if self.exists() and self.prompts(split).exists()]

    def iteration(self, number: int) -> Iteration:
        return Iteration(self.path / f"iteration_{number}")

    def window(self, number: int, split: str, size: int) -> list[int]:
        """List the iterations whose triplets iteration `number` works on, the oldest first: its own
        and, for the training split, the `size` before it."""
        return list(range(max(0, number - size), number + 1)) if split == "train" else [number]

    def reference(self, number: int, triplets: Path) -> Path:
        """Path of iteration `number`'s reference log-probabilities of some iteration's triplets."""
        of = triplets.parent.parent.name
        return self.iteration(number).path / "reference" / of / triplets.name

    def references(self, number: int) -> list[tuple[Path, Path]]:
        """List the triplets that iteration `number` needs reference log-probabilities of, each with
        the path of these."""
        if self.reference_window is None:
            return []
        needed = [
            self.iteration(t).triplets(split)
            for split in self.splits()
            for t in self.window(number, split, self.reference_window)
        ]
        return [(triplets, self.reference(number, triplets)) for triplets in needed]

    def check_writable(self) -> None:
        """Raise TSpinError if nothing can be written, before anything is computed."""
        probe = temporary_beside(self.path / "writable")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise TSpinError(
                f"`output_dir: {self.path}` is not a folder that can be written to "
                f"({error.strerror}); clear the path or name another"
            ) from error

    def clear_unbegun(self) -> None:
        """Delete what was frozen or imported by a first step that failed before the run began.

        Responses stay, because they record which prompts they answer.

        Raises:
            TSpinError: an iteration is trained here, so only the manifest is missing.
        """
        if self.iteration(0).trained_marker.exists():
            raise TSpinError(
                f"{self.path} holds a trained iteration, but {self.manifest.name} is missing; "
                "restore it, or use another `output_dir`; nothing was changed"
            )
        for folder in (self.prompts("train").parent, self.iteration(0).triplets("train").parent):
            if folder.exists():
                shutil.rmtree(folder)

    def begin(
        self,
        identity: Mapping[str, Any],
        versions: Mapping[str, str],
        *,
        initial_policy: str,
        dropped: Mapping[str, int] | None = None,
    ) -> None:
        """Write the manifest; from here on the run exists.

        Args:
            initial_policy: the fingerprint of θ0's weights.
            dropped: number of the data sets' rows that were left out, by kind.
        """
        write_json(
            self.manifest,
            {
                "format": FORMAT,
                "identity": dict(identity),
                "versions": versions,
                "initial_policy": initial_policy,
                "dropped": dict(dropped or {}),
            },
        )

    def initial_policy(self) -> str:
        """The fingerprint of the policy that the run began with."""
        return json.loads(self.manifest.read_text())["initial_policy"]

    def start_policy(self, number: int) -> str:
        """The fingerprint of the policy that iteration `number` starts from."""
        if number == 0:
            return self.initial_policy()
        return str(self.iteration(number - 1).training_record()["policy"])

    def dropped(self) -> dict[str, int]:
        """The number of the data sets' rows that were left out, by kind; empty before the run has
        begun, and in runs that did not record it."""
        return json.loads(self.manifest.read_text()).get("dropped", {}) if self.exists() else {}

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Refuse a run directory that another configuration made.

        Args:
            identity: the settings that decide what prompts, responses and policies mean. A key
                that only one side has is not compared.
        """
        try:
            recorded = json.loads(self.manifest.read_text())
            theirs = recorded["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise TSpinError(
                f"{self.manifest} cannot be read ({error}); restore it, or use another `output_dir`"
            ) from error
        if recorded.get("format") != FORMAT:
            raise TSpinError(
                f"{self.manifest} has format {recorded.get('format')!r}, this version reads "
                f"{FORMAT}; use the version of axolotl-tspin that made it, or another `output_dir`"
            )
        ours = json.loads(json.dumps(dict(identity)))
        differing = [k for k in ours if k in theirs and ours[k] != theirs[k]]
        if differing:
            changes = "; ".join(
                f"{key}: the run has {theirs[key]!r}, the YAML {ours[key]!r}" for key in differing
            )
            raise TSpinError(
                f"the run in {self.path} was begun with another configuration ({changes}). Set "
                "these back, or use another `output_dir`; nothing was changed"
            )

    def step_of(self, number: int) -> Due:
        """Find the step that iteration `number` is at."""
        iteration = self.iteration(number)
        if iteration.trained_marker.exists():
            return Due(number, "done")
        needed = [iteration.triplets(split) for split in self.splits()]
        needed += [path for _, path in self.references(number)]
        complete = bool(needed) and all(path.exists() for path in needed)
        return Due(number, "train" if complete else "generate")

    def due(self, iterations: int, pinned: int | None = None) -> Due:
        """Find the first unfinished iteration, or the pinned one, and its step; "done" with the
        last iteration if nothing is left.

        Raises:
            TSpinError: the iteration before the pinned one has not been trained.
        """
        if pinned is not None:
            if pinned > 0 and self.step_of(pinned - 1).step != "done":
                raise TSpinError(
                    f"`t_spin.iteration: {pinned}` starts from the policy of iteration "
                    f"{pinned - 1}, which is not trained yet in {self.path}; unpin it"
                )
            return self.step_of(pinned)
        steps = [self.step_of(number) for number in range(iterations)]
        return next((due for due in steps if due.step != "done"), steps[-1])

    def lacks_final_samples(self, iterations: int) -> bool:
        """True if all iterations are trained, and the final policy's responses to the `test`
        prompts are not complete yet."""
        return (
            "test" in self.splits()
            and self.due(iterations).step == "done"
            and not self.iteration(iterations).triplets("test").exists()
        )

    def drop_models_before(self, number: int) -> list[int]:
        """Delete the policies of the iterations before `number`; return the ones that had any."""
        dropped = [t for t in range(number) if self.iteration(t).model.exists()]
        for t in dropped:
            shutil.rmtree(self.iteration(t).model)
        return dropped

    def policy_after(self, number: int, initial: Policy, *, adapter: bool) -> Policy:
        """The policy that iteration `number` trained; −1 is the initial policy.

        Args:
            initial: the YAML's `base_model` (and `lora_model_dir`).
            adapter: True if the YAML trains an adapter. Every iteration continues it on the
                unchanged base model; it is never merged.
        """
        if number < 0:
            return initial
        model = str(self.iteration(number).model)
        return Policy(initial.base_model, model) if adapter else Policy(model)


def _finite(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what is not finite: null in our files, NaN and Infinity in the Trainer's."""

    def is_finite(value: Any) -> bool:
        return value is not None and not (isinstance(value, float) and not math.isfinite(value))

    return [{key: x for key, x in entry.items() if is_finite(x)} for entry in history]


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True
