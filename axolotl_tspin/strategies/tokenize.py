"""Conversion of a data set to rows of token ids; every strategy's `load` returns it to Axolotl."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from axolotl.prompt_tokenizers import DatasetWrappingStrategy
from datasets import Dataset

from axolotl_tspin.errors import BadRow, TSpinError, UntrainedRow
from axolotl_tspin.logs import get_logger
from axolotl_tspin.strategies.dropped import count_dropped
from axolotl_tspin.strategies.encoding import Triplet
from axolotl_tspin.strategies.lengths import ExcessLength, Fitted, fit_row
from axolotl_tspin.strategies.unused_columns import (
    unused_columns_warning,
    unused_content_columns,
)
from axolotl_tspin.triplets import joined

LOG = get_logger(__name__)


EncodeRows = Callable[[list[dict[str, Any]], list[int]], list[tuple[int, Triplet | BadRow]]]
"""Encodes rows, given their numbers in the data set. Gives these numbers, each with a triplet or an
error; a row may give several."""


MOST_LISTED = 20
"""Bad rows that an error lists one by one."""

LOOKED_AT = 64
"""Rows in which columns that are not used are looked for."""

ROWS_PER_PROCESS = 4000
"""A process takes longer to start than to encode fewer rows."""

NOTHING = Triplet("", None, [0], [0], [0])
"""Stands for a row that is left out; lists that are empty would have no type in Arrow."""


class TripletDataset(DatasetWrappingStrategy):
    """Encodes a data set's rows, makes them fit, and logs the numbers.

    Args:
        encode: reads rows.
        source: name of the data set in errors and logs.
        columns: the columns that `encode` needs.
        sequence_len, excess_length: see `fit_row`.
        words: decodes a response; None if the rows are tokens and have no further columns.
        with_texts: keep the texts and further columns that the run directory stores.
        generated: rows have a synthetic and a proto-synthetic response.
        drop_bad_rows: leave out rows that cannot be trained on, instead of raising.
    """

    def __init__(
        self,
        encode: EncodeRows,
        *,
        source: str,
        columns: list[str],
        sequence_len: int,
        excess_length: ExcessLength,
        words: Callable[[list[int]], str] | None,
        with_texts: bool,
        generated: bool,
        drop_bad_rows: bool,
    ) -> None:
        self.encode = encode
        self.source = source
        self.columns = columns
        self.sequence_len = sequence_len
        self.excess_length = excess_length
        self.words = words
        self.with_texts = with_texts
        self.responses = 3 if generated else 1
        self.drop_bad_rows = drop_bad_rows

    def wrap_dataset(
        self,
        dataset: Dataset,
        process_count: int | None = None,
        keep_in_memory: bool | None = False,
        **kwargs: Any,
    ) -> Dataset:
        """Encode a data set.

        Returns:
            Rows with `input_ids` and `labels` (prompt and annotated response, the prompt's labels
            −100); `synthetic_ids`, `proto_synthetic_ids` and `reference_logps` if the rows have
            them; with `with_texts` also `prompt`, `annotated`, `prompt_messages` (JSON, or ""),
            `stop_ids` and `source_row`.
        """
        missing = [column for column in self.columns if column not in dataset.column_names]
        if missing:
            raise TSpinError(
                f"{self.source}: no column {', '.join(map(repr, missing))}; the data set has "
                f"{', '.join(map(repr, dataset.column_names))}. Name the right ones in the YAML"
            )
        if len(dataset) == 0:
            raise TSpinError(f"{self.source}: the data set is empty")
        processes = min(process_count or 1, len(dataset) // ROWS_PER_PROCESS)
        encoded = dataset.map(
            self._encode_batch,
            batched=True,
            with_indices=True,
            num_proc=processes if processes > 1 else None,  # 1 would start a separate process
            remove_columns=dataset.column_names,
            keep_in_memory=bool(keep_in_memory),
            desc="Encoding triplets",
            # Axolotl keeps prepared rows; this cache would not notice a new version of our code.
            load_from_cache_file=False,
        )
        self._check_bad_rows(encoded)
        kept = encoded.select([i for i, dropped in enumerate(encoded["_dropped"]) if not dropped])
        self._log(encoded, kept)
        self._warn_of_unused_columns(dataset)
        if len(kept) == 0:
            reasons = ", ".join(sorted(set(encoded["_dropped"])))
            raise TSpinError(
                f"{self.source}: none of its {len(dataset)} rows is left ({reasons}); raise "
                f"`sequence_len: {self.sequence_len}`, or mend the rows"
            )
        return kept.remove_columns([name for name in kept.column_names if name.startswith("_")])

    def _encode_batch(
        self, columns: dict[str, list[Any]], indices: list[int]
    ) -> dict[str, list[Any]]:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        fitted = [self._row(triplet, index) for index, triplet in self.encode(rows, indices)]
        return {name: [row[name] for row in fitted] for name in fitted[0]}

    def _row(self, triplet: Triplet | BadRow, index: int) -> dict[str, Any]:
        """Make a row of the encoded data set; one that is left out says why."""
        if isinstance(triplet, BadRow):
            error = "" if isinstance(triplet, UntrainedRow) else str(triplet)
            fitted = Fitted([[0]] * self.responses, dropped=triplet.kind)
            return self._encoded(NOTHING, fitted, index) | {"_error": error}
        responses = [triplet.annotated]
        if triplet.synthetic is not None and triplet.proto_synthetic is not None:
            responses += [triplet.synthetic, triplet.proto_synthetic]
        fitted = fit_row(
            triplet.prompt,
            responses,
            sequence_len=self.sequence_len,
            excess_length=self.excess_length,
            where=f"{self.source}: row {index}",
        )
        return self._encoded(triplet, fitted, index) | {"_error": ""}

    def _encoded(self, triplet: Triplet, fitted: Fitted, index: int) -> dict[str, Any]:
        annotated, *generated = fitted.responses
        encoded: dict[str, Any] = {
            **joined(triplet.prompt, annotated),
            "_dropped": fitted.dropped or "",
            "_cut": fitted.cut,
            "_left_out": list(triplet.left_out) or [""],
        }
        if generated:
            synthetic, proto_synthetic = generated
            encoded |= {
                "synthetic_ids": synthetic,
                "proto_synthetic_ids": proto_synthetic,
                "_is_annotated": synthetic == annotated,
                "_is_proto": synthetic == proto_synthetic,
            }
        if triplet.reference_logps is not None:
            encoded["reference_logps"] = triplet.reference_logps
        if self.with_texts and self.words:
            encoded |= {
                "prompt": triplet.prompt_text,
                "annotated": self.words(annotated),
                "prompt_messages": json.dumps(triplet.messages) if triplet.messages else "",
                "stop_ids": list(triplet.stop_ids),
                "source_row": index,
            }
        return encoded

    def _check_bad_rows(self, encoded: Dataset) -> None:
        """Raise the first bad rows' errors, with counts by kind, unless they are to be dropped."""
        bad = [
            (e, kind) for e, kind in zip(encoded["_error"], encoded["_dropped"], strict=True) if e
        ]
        if not bad or self.drop_bad_rows:
            return
        if len(bad) == 1:
            raise TSpinError(f"{bad[0][0]}. `t_spin: {{on_bad_rows: drop}}` leaves it out")
        counts = _counted(Counter(kind for _, kind in bad))
        lines = [error for error, _ in bad[:MOST_LISTED]]
        if len(bad) > MOST_LISTED:
            lines.append(f"… and {len(bad) - MOST_LISTED} more")
        raise TSpinError(
            f"{self.source}: {len(bad)} of {len(encoded)} rows cannot be trained on ({counts}). "
            "Mend them, or leave them out with `t_spin: {on_bad_rows: drop}`:\n" + "\n".join(lines)
        )

    def _warn_of_unused_columns(self, dataset: Dataset) -> None:
        if self.words is None:
            return
        rows = dataset.select(range(min(LOOKED_AT, len(dataset)))).to_list()
        texts: dict[int, str] = defaultdict(str)
        for index, triplet in self.encode(rows, list(range(len(rows)))):
            if isinstance(triplet, Triplet):
                texts[index] += f" {triplet.prompt_text} {self.words(triplet.annotated)}"
        seen = [rows[index] for index in texts]
        unused = unused_content_columns(seen, list(texts.values()), self.columns)
        if unused:
            LOG.warning("T-SPIN: %s", unused_columns_warning(self.source, unused))

    def _log(self, encoded: Dataset, kept: Dataset) -> None:
        dropped = Counter(reason for reason in encoded["_dropped"] if reason)
        count_dropped(dropped)
        parts = [f"{len(encoded)} rows read, {len(encoded) - len(kept)} dropped"]
        parts += [f"{count} × {reason}" for reason, count in sorted(dropped.items())]
        parts.append(f"{sum(kept['_cut'])} responses cut to sequence_len {self.sequence_len}")
        if "_is_proto" in kept.column_names:
            parts.append(f"{sum(kept['_is_annotated'])} rows with synthetic = annotated")
            parts.append(f"{sum(kept['_is_proto'])} rows with synthetic = proto-synthetic")
        LOG.info("T-SPIN: %s: %s", self.source, "; ".join(parts))
        left_out = Counter(piece for row in kept["_left_out"] for piece in row if piece)
        if left_out:
            LOG.warning(
                "T-SPIN: %s: the chat template leaves out parts of the prompts (%s). The policy "
                "does not see them, in sampling as in training; give a template that has them "
                "with `chat_template_jinja` if it should",
                self.source,
                _counted(left_out),
            )


def _counted(counts: Counter[str]) -> str:
    """List counts, the largest first."""
    return "; ".join(f"{count} × {name}" for name, count in counts.most_common())
