"""The `t_spin:` block of the YAML, typed (pydantic only: no torch, no axolotl).

docs/configuration.md is generated from these fields.
"""

import difflib
import re
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


def nearest_key_message(key: str, known: list[str], where: str) -> str:
    """Error message for an unknown key: its name, the nearest known key, all known keys."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"'{key}' is not a key of {where}{hint} (keys: {', '.join(sorted(known))})"


class StrictModel(BaseModel):
    """A model whose unknown keys are errors that name the nearest known key."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads true as 1: `keep_models: true` would drop all models but one.
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise ValueError(f"`{str(value).lower()}` is neither a number nor text; give a value")
        return value

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = list(cls.model_fields)
            public = [name for name in known if name != "resolved"]
            for key in data:
                if key not in known:
                    where = (cls.__doc__ or cls.__name__).split(":")[0].strip("`")
                    raise ValueError(nearest_key_message(str(key), public, f"`{where}`"))
        return data


class GenerationConfig(StrictModel):
    """`t_spin.generation`: settings for sampling synthetic and proto-synthetic responses."""

    backend: Literal["transformers", "vllm", "server"] = Field(
        default="transformers",
        description="The engine: transformers in this process, vLLM in a separate process, or a "
        "server with OpenAI's API.",
    )
    temperature: float = Field(
        default=1.0, ge=0, description="Sampling temperature; 0 means greedy decoding."
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Nucleus sampling mass; 1.0 samples from everything."
    )
    max_new_tokens: int = Field(
        default=256,
        ge=1,
        description="Most tokens in a response; `sequence_len` less the prompt also bounds it.",
    )
    select: Literal["all", "fraction", "advantage"] = Field(
        default="all",
        description="Prompts that get a new synthetic response from iteration 1 on: `all`, a "
        "random `fraction`, or the `fraction` with the largest current advantage.",
    )
    fraction: float = Field(
        default=1.0, gt=0, le=1, description="Share of the prompts that `select` takes."
    )
    deduplicate: bool = Field(
        default=False,
        description="Sample once for rows with the same prompt; they share the response.",
    )
    shard: str | None = Field(
        default=None,
        pattern=r"^\d+/[1-9]\d*$",
        description="`i/n`: this process's share of the work, i from 0 (default: from SLURM's or "
        "torchrun's environment, else all).",
    )
    batch_size: int | Literal["auto"] = Field(
        default="auto",
        description="Prompts in one batch (transformers); `auto` takes what memory allows.",
    )
    python: str | None = Field(
        default=None, description="The interpreter of vLLM's environment (vllm; default: this one)."
    )
    servers: list[str] = Field(
        default_factory=list,
        description="Base URLs, such as `http://node1:8000/v1` (server).",
    )
    served_model: str | None = Field(
        default=None,
        description="The model's name on servers that do not tell which weights it has (server).",
    )
    server_command: str | None = Field(
        default=None,
        description="Starts a server before sampling and stops it after; `{model}` and "
        "`{adapter}` stand for the policy's folders (server).",
    )
    api_key_env: str | None = Field(
        default=None, description="Environment variable that holds the servers' key (server)."
    )
    concurrency: int = Field(
        default=64, ge=1, description="Requests in flight on each server (server)."
    )
    timeout: float = Field(
        default=600.0, gt=0, description="Seconds that one request may take (server)."
    )
    patience: float = Field(
        default=900.0,
        gt=0,
        description="Seconds to keep trying while no server gives a usable answer (server).",
    )

    @field_validator("batch_size")
    @classmethod
    def _batch_size_is_positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"`{value}` prompts in a batch; expected at least 1, or `auto`")
        return value

    @field_validator("servers")
    @classmethod
    def _servers_are_urls(cls, value: list[str]) -> list[str]:
        for url in value:
            if not re.match(r"https?://[^/\s]", url):
                raise ValueError(
                    f"`{url}` is not a base URL; expected one such as http://node1:8000/v1"
                )
        return value

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "GenerationConfig":
        if self.select == "all" and self.fraction != 1.0:
            raise ValueError(
                "`fraction` has no effect with `select: all`; use `select: fraction` or `advantage`"
            )
        if self.select != "all" and self.fraction == 1.0:
            raise ValueError(
                f"`select: {self.select}` with `fraction: 1.0` takes all prompts; set `fraction` "
                "to the share of prompts that gets a new response"
            )
        if self.backend == "server" and not self.servers:
            raise ValueError("`backend: server` needs `servers`, a list of base URLs")
        if self.shard and int(self.shard.split("/")[0]) >= int(self.shard.split("/")[1]):
            raise ValueError(f"`shard: {self.shard}`: shards count from 0")
        return self


class ResolvedRun(StrictModel):
    """`t_spin.resolved`: values that the plugin worked out for this process (internal).

    The plugin writes it when it reads the YAML. Its presence means that the configuration has
    already been rewritten, so reading it again (a rank, a Ray worker) changes nothing.
    """

    task: Literal["train", "generate", "import"]
    direct: bool = False
    iteration: int | None = None
    beta: float = 0.0
    initial_policy: str
    run_dir: str
    already_trained: bool = False
    foreign: list[str] = Field(default_factory=list)


class TSpinConfig(StrictModel):
    """`t_spin`: the method's settings."""

    method: Literal["t_spin", "spin", "t_spin_ref", "no_history"] = Field(
        default="t_spin",
        description="`t_spin` (eq. 7); the baseline `spin` (eq. 3, where `alpha` is its λ: 0.1 in "
        "its paper); the ablations `t_spin_ref` (eq. 9) and `no_history` (β = 0 throughout).",
    )
    alpha: float = Field(
        default=1.0, gt=0, description="Scale of both advantages inside ℓ (α of eq. 7)."
    )
    beta: float = Field(
        default=0.1, ge=0, description="Weight of the historical advantage's term (β of eq. 7)."
    )
    loss: Literal["logistic", "exponential"] = Field(
        default="logistic", description="ℓ: logistic −log σ(a), or exponential exp(−a)."
    )
    iterations: int = Field(default=5, ge=1, description="Number of iterations in the run.")
    iteration: int | None = Field(
        default=None,
        ge=0,
        description="Pins one iteration (0 is the first) instead of the one that is due.",
    )
    historical_at_iteration_0: bool = Field(
        default=False,
        description="Keep the historical term at iteration 0, where the paper sets β = 0.",
    )
    field_synthetic: str = Field(
        default="synthetic",
        description="Column with a data set's synthetic response, if it has one.",
    )
    field_proto_synthetic: str = Field(
        default="proto_synthetic",
        description="Column with a data set's proto-synthetic response, if it has one.",
    )
    layout: Literal["auto", "shared_prefix", "padded"] = Field(
        default="auto",
        description="Layout of a training batch: `shared_prefix` computes a prompt once for its "
        "responses, `padded` three times; `auto` takes the fastest that is exact for the model.",
    )
    max_tokens_per_row: int | Literal["auto"] = Field(
        default="auto",
        description="Most tokens in a row of packed triplets (shared_prefix); `auto` packs a "
        "micro-batch into one row.",
    )
    history_window: int = Field(
        default=0,
        ge=0,
        description="Iteration t also trains on the triplets of this many iterations before it "
        "(SPIN's authors mix in one).",
    )
    keep_models: Literal["all", "last"] | int = Field(
        default="all",
        description="Trained iterations that keep their weights: `all`, `last`, or a number.",
    )
    diagnostics: int | Literal["all"] = Field(
        default=1000,
        description="Triplets to score under the policy that an iteration trained, for `status`, "
        "`report` and warnings: a number, `all`, or 0 for none.",
    )
    held_out: int | Literal["auto"] = Field(
        default="auto",
        description="Rows of `datasets` that are never trained on and show whether the policy got "
        "better: a number, 0 for none, or `auto`: 5%, at most 256, none of fewer than 640 rows. "
        "Rows that share a prompt stay together. `val_set_size` and `test_datasets` take its "
        "place.",
    )
    answer: str | None = Field(
        default=None,
        description="Regular expression of a response's answer, such as `'#### (-?[0-9.,]+)'`: the "
        "last match (or its first group) must equal the annotated one's. The accuracy on held-out "
        "prompts then decides first whether the policy got better.",
    )
    on_warning: Literal["stop", "continue"] = Field(
        default="stop",
        description="What a step does after a warning that it would be of no use: triplets that "
        "teach nothing, a policy that collapsed. `stop` ends before it, `continue` goes on.",
    )
    gradient_norms: int = Field(
        default=0,
        ge=0,
        description="Log ‖∇L‖ of the current and of the historical term every this many optimizer "
        "steps (two more passes in that step; a log entry has the mean since the last; one GPU or "
        "DDP); 0: never.",
    )
    on_bad_rows: Literal["raise", "drop"] = Field(
        default="raise",
        description="Rows that cannot be trained on: `raise` ends with a list of them, `drop` "
        "leaves them out and logs how many of each kind.",
    )
    allow_foreign: bool = Field(
        default=False,
        description="Train on responses that this run's policies did not sample (recorded).",
    )
    generation: GenerationConfig = Field(
        default_factory=GenerationConfig, description="Settings for sampling; see below."
    )
    resolved: ResolvedRun | None = Field(default=None, repr=False)

    @property
    def has_reference(self) -> bool:
        """True if rewards are relative to the policy that the iteration starts from."""
        return self.method in ("spin", "t_spin_ref")

    @property
    def has_history(self) -> bool:
        """True if the loss has the historical term."""
        return self.method in ("t_spin", "t_spin_ref")

    @property
    def reference_window(self) -> int | None:
        """Number of earlier iterations whose triplets also need reference log-probabilities; None
        if no iteration needs any."""
        return self.history_window if self.has_reference else None

    @field_validator("keep_models")
    @classmethod
    def _keeps_a_model(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"`{value}` models kept; expected at least 1, as the last is needed")
        return value

    @field_validator("diagnostics")
    @classmethod
    def _scores_some_or_none(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError(f"`{value}` triplets scored; expected a number, `all`, or 0 for none")
        return value

    @field_validator("held_out")
    @classmethod
    def _holds_out_some_or_none(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError(f"`{value}` rows held out; expected a number, `auto`, or 0 for none")
        return value

    @field_validator("answer")
    @classmethod
    def _answer_is_an_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"`{value}` is not a regular expression ({error})") from error
        return value

    @field_validator("max_tokens_per_row")
    @classmethod
    def _rows_hold_tokens(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"`{value}` tokens in a row; expected at least 1, or `auto`")
        return value

    @model_validator(mode="after")
    def _pinned_iteration_is_one_of_the_run(self) -> "TSpinConfig":
        if self.iteration is not None and self.iteration >= self.iterations:
            raise ValueError(
                f"`t_spin.iteration: {self.iteration}` is not one of the run's "
                f"{self.iterations} iterations (0 to {self.iterations - 1}); raise "
                "`t_spin.iterations` or pin another"
            )
        return self
