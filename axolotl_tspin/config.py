"""The `t_spin:` block of the YAML, typed (pydantic only: no torch, no axolotl).

The README's table of keys is held to these fields by a test.
"""

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


def nearest_key_message(key: str, known: list[str], where: str) -> str:
    """What to say of a key that does not exist: its name, the nearest one, all of them."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"'{key}' is not a key of {where}{hint} (keys: {', '.join(sorted(known))})"


class StrictModel(BaseModel):
    """A model whose unknown keys are errors that name the nearest known key."""

    model_config = ConfigDict(extra="forbid")

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
    """`t_spin.generation`: how synthetic and proto-synthetic responses are sampled."""

    backend: Literal["transformers"] = Field(
        default="transformers", description="The engine that samples the responses."
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
    batch_size: int = Field(
        default=16, ge=1, description="Prompts in one call of the engine (transformers backend)."
    )


class ResolvedRun(StrictModel):
    """`t_spin.resolved`: what the plugin worked out for this process (internal).

    The plugin writes it when it reads the YAML; its presence says that the configuration has
    been rewritten already, so that reading it again (a rank, a Ray worker) changes nothing.
    """

    task: Literal["train", "generate"]
    direct: bool = False
    iteration: int | None = None
    beta: float = 0.0
    initial_policy: str
    run_dir: str
    already_trained: bool = False


class TSpinConfig(StrictModel):
    """`t_spin`: the method's settings."""

    alpha: float = Field(
        default=1.0, gt=0, description="Scale of both advantages inside ℓ (α of eq. 7)."
    )
    beta: float = Field(
        default=0.1, ge=0, description="Weight of the historical advantage's term (β of eq. 7)."
    )
    loss: Literal["logistic", "exponential"] = Field(
        default="logistic", description="ℓ: logistic −log σ(a), or exponential exp(−a)."
    )
    iterations: int = Field(default=5, ge=1, description="How many iterations the run has.")
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
        description="Column of a data set's synthetic response, where it has one.",
    )
    field_proto_synthetic: str = Field(
        default="proto_synthetic",
        description="Column of a data set's proto-synthetic response, where it has one.",
    )
    generation: GenerationConfig = Field(
        default_factory=GenerationConfig, description="How responses are sampled; see below."
    )
    resolved: ResolvedRun | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _pinned_iteration_is_one_of_the_run(self) -> "TSpinConfig":
        if self.iteration is not None and self.iteration >= self.iterations:
            raise ValueError(
                f"`t_spin.iteration: {self.iteration}` is not one of the run's "
                f"{self.iterations} iterations (0 to {self.iterations - 1}); raise "
                "`t_spin.iterations` or pin another"
            )
        return self
