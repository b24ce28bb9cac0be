"""Parts shared by the three public strategies: synthetic columns and length settings."""

from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.errors import BadRow, TSpinError
from axolotl_tspin.strategies.encoding import Encoder, RowText, Triplet
from axolotl_tspin.strategies.rows import RowReader
from axolotl_tspin.strategies.tokenize import EncodeRows, TripletDataset

P = ParamSpec("P")
T = TypeVar("T")

FINISH_REASON_SUFFIX = "_finish_reason"
"""A column `<synthetic column>_finish_reason` holds "length" where a response was cut."""


def settings(cfg: Any) -> TSpinConfig:
    """Read the `t_spin` block of a validated Axolotl configuration."""
    return TSpinConfig.model_validate(cfg.t_spin.to_dict())


def generated_columns(config: TSpinConfig) -> list[str]:
    """List the synthetic and the proto-synthetic column; none in the generation step."""
    if _task(config) == "generate":
        return []
    return [config.field_synthetic, config.field_proto_synthetic]


def read_response(
    reader: RowReader,
    row: dict[str, Any],
    index: int,
    column: str,
    prompt: Sequence[dict[str, Any]] = (),
) -> tuple[dict[str, Any], bool]:
    """Read a synthetic or proto-synthetic column: its assistant message, and whether the response
    ended by itself. If it did, it may be empty: a policy may end at once.

    Args:
        prompt: the messages that the response must answer, if the column has messages.
    """
    if column not in row:
        raise TSpinError(f"{reader.source}: no column '{column}'; the data set has {sorted(row)}")
    ended = row.get(column + FINISH_REASON_SUFFIX) != "length"
    message = reader.response(index, column, row[column], may_be_blank=True, prompt=prompt)
    if not ended and not message.get("tool_calls") and not message["content"].strip():
        raise reader.error(
            index,
            column,
            f"the text is empty, and '{column}{FINISH_REASON_SUFFIX}' says that it was cut "
            "(length), so there is nothing to train on; drop the row",
            "an empty response that was cut",
        )
    return message, ended


def text_dataset(
    text: Callable[[dict[str, Any], int], RowText | list[RowText | BadRow]],
    encoder: Encoder,
    cfg: Any,
    source: str,
    columns: list[str],
) -> TripletDataset:
    """Make a `triplet_dataset` whose rows `text` reads, given a row and its number; a list gives as
    many rows."""

    def encode(
        rows: list[dict[str, Any]], indices: list[int]
    ) -> list[tuple[int, Triplet | BadRow]]:
        read: list[tuple[int, RowText | BadRow]] = []
        for row, index in zip(rows, indices, strict=True):
            found = value_or_error(text, row, index)
            read += [(index, item) for item in (found if isinstance(found, list) else [found])]
        triplets = iter(encoder.triplets([r for _, r in read if not isinstance(r, BadRow)]))
        return [(i, r if isinstance(r, BadRow) else next(triplets)) for i, r in read]

    return triplet_dataset(encode, cfg, source, columns, encoder.words)


def value_or_error(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | BadRow:
    """Call a function; a row's error becomes a value, so that others are read before it is told."""
    try:
        return function(*args, **kwargs)
    except BadRow as error:
        return error


def triplet_dataset(
    encode: EncodeRows,
    cfg: Any,
    source: str,
    columns: list[str],
    words: Callable[[list[int]], str] | None = None,
) -> TripletDataset:
    """Make the strategy for a data set, with the YAML's length settings."""
    config = settings(cfg)
    return TripletDataset(
        encode,
        generated=bool(generated_columns(config)),
        drop_bad_rows=config.on_bad_rows == "drop",
        source=source,
        columns=columns,
        sequence_len=cfg.sequence_len,
        excess_length=cfg.excess_length_strategy or "truncate",
        words=words,
        with_texts=_task(config) != "train",
    )


def _task(config: TSpinConfig) -> str:
    return config.resolved.task if config.resolved else "train"
