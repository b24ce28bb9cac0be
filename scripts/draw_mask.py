"""Draw docs/layouts.png, the attention of a shared-prefix row, from the training's own code.

python scripts/draw_mask.py [OUT.png]
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from axolotl_tspin.training.attention.backend import Layer, StructuredMask
from axolotl_tspin.training.attention.per_part import attend_per_part
from axolotl_tspin.training.layouts import pack_triplets, pad_triplets
from axolotl_tspin.triplets import TripletTokens

# Two triplets: three different responses, and y′ = y0 as at iteration 0.
TRIPLETS = [
    TripletTokens([1] * 8, [2] * 4, [3] * 5, [4] * 3),
    TripletTokens([5] * 6, [6] * 5, [7] * 4, [7] * 4),
]
NAMES = [["x", "y", "y′", "y0"], ["x", "y", "y′ = y0"]]


def main() -> None:
    default = Path(__file__).parent.parent / "docs" / "layouts.png"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    batch = pack_triplets(TRIPLETS, pad_token_id=0)
    rows, length = batch["layout"].rows, batch["input_ids"].shape[1]
    # With every token's value its own number, the output is the weight of each token.
    zeros, ones = torch.zeros(1, 1, length, 1), torch.eye(length)[None, None]
    unused = torch.empty(0)
    mask = StructuredMask(batch["layout"].segments, unused, unused, window=None)
    visible = attend_per_part(zeros, zeros, ones, mask, Layer())[0, :, 0] > 0

    figure, axes = plt.subplots(figsize=(6.4, 6.4), layout="constrained")
    axes.imshow(visible, cmap="Blues", vmin=0, vmax=1.4)
    ticks, labels = [], []
    for span, names in zip(rows[0], NAMES, strict=True):
        begin = span.start
        for name, tokens in zip(names, (span.prompt, *span.responses), strict=True):
            ticks.append(begin + (tokens - 1) / 2)
            labels.append(name)
            begin += tokens
            weight = 1.5 if begin == span.end else 0.5
            axes.axhline(begin - 0.5, color="black", linewidth=weight)
            axes.axvline(begin - 0.5, color="black", linewidth=weight)
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.tick_params(length=0)
    axes.set_xlabel("is seen")
    axes.set_ylabel("sees")
    padded = pad_triplets(TRIPLETS, pad_token_id=0)["input_ids"].numel()
    axes.set_title(f"One row of {length} tokens in place of six padded rows of {padded}")
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
