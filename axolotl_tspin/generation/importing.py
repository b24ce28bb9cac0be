"""Start of a run from responses that others sampled (`axolotl t-spin import`)."""

import importlib.metadata
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.loaders import load_tokenizer

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.held_out import hold_out
from axolotl_tspin.generation.step import begin_run, freeze_lock
from axolotl_tspin.logs import get_logger
from axolotl_tspin.resolve.embeddings import refuse_new_embeddings
from axolotl_tspin.resolve.generation_plan import GenerationPlan
from axolotl_tspin.resolve.steps import prepare_import
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.prompts import Prompts, freeze_prompts
from axolotl_tspin.run.public_names import public_name
from axolotl_tspin.run.tables import TableWriter
from axolotl_tspin.run.triplets import SUFFIXES, TRIPLETS_SCHEMA
from axolotl_tspin.strategies.dropped import dropped_rows

LOG = get_logger(__name__)


def import_run(config_path: str | Path) -> RunDirectory:
    """Freeze the prompts of data that already has responses, and make these iteration 0's.

    Nothing proves which policy sampled them, so they are recorded as foreign, and training accepts
    them only with `t_spin.allow_foreign: true`. Iteration 1 samples as usual.

    Args:
        config_path: the YAML; its data sets hold the responses, as SPIN's public ones do.

    Raises:
        TSpinError: there is a run already, or the data has no responses.
    """
    raw = read_yaml(config_path)
    plan = prepare_import(raw)
    plan.run.check_writable()
    cfg = load_cfg(raw)
    cfg.val_set_size = 0
    with freeze_lock(plan.run):
        if plan.run.exists():
            raise TSpinError(
                f"{plan.run.path} holds a run, which another process has begun meanwhile; import "
                "into another `output_dir`"
            )
        plan.run.clear_unbegun()
        _freeze_with_responses(plan, cfg)
    return plan.run


def _freeze_with_responses(plan: GenerationPlan, cfg: Any) -> None:
    refuse_new_embeddings(cfg)
    tokenizer = load_tokenizer(cfg)
    shutil.rmtree(cfg.dataset_prepared_path, ignore_errors=True)
    with dropped_rows() as dropped:
        data = load_datasets(cfg=cfg)
    source = f"foreign:{','.join(public_name(entry.path) for entry in cfg.datasets)}"
    train, test = data.train_dataset, data.eval_dataset
    if test is None:
        train, test = hold_out(train, plan.held_out, plan.val_set_size, cfg.seed or 42)
    for split, rows in (("train", train), ("test", test)):
        if rows is not None:
            freeze_prompts(plan.run.prompts(split), rows, len(rows))
            _write_triplets(plan.run, split, rows, tokenizer, source)
    begin_run(plan, dropped)
    shutil.rmtree(cfg.dataset_prepared_path, ignore_errors=True)


def _write_triplets(
    run: RunDirectory, split: str, rows: Iterable[Mapping[str, Any]], tokenizer: Any, source: str
) -> None:
    prompts = Prompts(run.prompts(split))
    iterator = iter(rows)
    counts = {"sampled": 0, "kept": 0, "copied": 0, "tokens": 0, "seconds": 0.0}
    differ = 0
    engine = f"imported (datasets {importlib.metadata.version('datasets')})"
    with TableWriter(run.iteration(0).triplets(split), TRIPLETS_SCHEMA) as writer:
        for block in prompts.blocks:
            table = prompts.read(block)
            columns = {name: table[name] for name in table.column_names}
            taken = [next(iterator) for _ in range(table.num_rows)]
            stops = table["stop_ids"].to_pylist()
            differ += sum(row["synthetic_ids"] != row["proto_synthetic_ids"] for row in taken)
            for name in ("synthetic", "proto_synthetic"):
                responses = [
                    _response(row[f"{name}_ids"], stop_ids, tokenizer, source, engine)
                    for row, stop_ids in zip(taken, stops, strict=True)
                ]
                for field, suffix in SUFFIXES.items():
                    column = name + suffix
                    columns[column] = pa.array(
                        [r[field] for r in responses], type=TRIPLETS_SCHEMA.field(column).type
                    )
            writer.write(pa.table(columns, schema=TRIPLETS_SCHEMA))
        writer.close(
            {
                **counts,
                "prompts_fingerprint": prompts.fingerprint,
                "rows": prompts.rows,
                "block_rows": prompts.block_rows,
                "synthetic_is_not_proto_synthetic": differ,
                "finish_reasons": {},
            }
        )


def _response(
    ids: list[int], stop_ids: list[int], tokenizer: Any, source: str, engine: str
) -> dict[str, Any]:
    ended = bool(ids) and ids[-1] in stop_ids
    words = ids[:-1] if ended else ids
    return {
        "text": tokenizer.decode(words, skip_special_tokens=True),
        "ids": ids,
        "finish_reason": "stop" if ended else "length",
        "tokens": len(words),
        "iteration": 0,
        "policy": source,
        "sampling": "",
        "engine": engine,
    }
