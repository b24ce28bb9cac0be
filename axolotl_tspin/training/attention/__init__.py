"""Attention over shared-prefix rows: a response sees its prompt and itself, nothing else.

It is registered with transformers' attention and mask interfaces under `STRUCTURED`, so every model
that supports custom attention can use it (torch and transformers only).

- `interface`: the registration, and which backend computes a layer.
- `backend`: what a backend gets and gives.
- `per_part`, `varlen`, `flash`: the backends, one file each. `per_part` is the plainest.
- `gathered`: the keys of variable-length attention, for the last two.
"""

from axolotl_tspin.training.attention.interface import (
    STRUCTURED,
    structured_attention,
    use_attention,
)

__all__ = ["STRUCTURED", "structured_attention", "use_attention"]
