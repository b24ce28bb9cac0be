"""Choice of the layout that a policy can be trained in."""

from typing import Any, NamedTuple

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.training.policies import base_of


class Choice(NamedTuple):
    """A layout, the way to apply the head (`heads.HEADS`), and the reason."""

    layout: str
    head: str
    reason: str


PLAIN = Choice("padded", "plain", "every other layout is compared with it")


def choose_layout(model: Any, wanted: str, *, compiled: bool = False) -> Choice:
    """Choose the fastest exact layout for a policy, from its class and configuration.

    Args:
        model: the policy (a transformers model, or one under PEFT), not yet wrapped.
        wanted: `t_spin.layout`: "auto", "shared_prefix" or "padded".
        compiled: True if torch.compile compiles the policy.

    Raises:
        TSpinError: "shared_prefix" is wanted, but the policy cannot take it.
    """
    head = "plain" if compiled or model.get_output_embeddings() is None else "chunked"
    if wanted == "padded":
        return Choice("padded", head, "`t_spin.layout: padded`")
    obstacle = obstacle_to_sharing(model, compiled=compiled)
    if obstacle is None:
        return Choice("shared_prefix", head, "each prompt is computed once for its responses")
    if wanted == "shared_prefix":
        raise TSpinError(
            f"`t_spin.layout: shared_prefix` does not fit this policy: {obstacle}. Use `auto` or "
            "`padded`"
        )
    return Choice("padded", head, obstacle)


def obstacle_to_sharing(model: Any, *, compiled: bool) -> str | None:
    """Explain why responses cannot share their prompt's row; None if they can."""
    base = base_of(model)
    name = type(base).__name__
    config = base.config.get_text_config()
    if compiled:
        return "torch.compile would recompile for the shape of every row"
    if base.config.is_encoder_decoder:
        return f"{name} is an encoder-decoder"
    if getattr(base, "_is_stateful", False):
        return f"{name} carries a state along the row, which would run through all responses"
    others = set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if others:
        return f"{name} has layers of type {', '.join(sorted(others))}"
    if getattr(config, "attention_chunk_size", None):
        return f"{name} attends in chunks of the row"
    if not getattr(base, "_supports_attention_backend", False):
        return f"{name} supports only its own attention"
    return None
