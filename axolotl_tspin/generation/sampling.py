"""Sampling of one split of the data in the due iteration."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import filelock
import numpy as np

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.blocks import Block, all_complete, block_path, claim_blocks, rows_done
from axolotl_tspin.generation.engines.engine import Engine, Request, Response
from axolotl_tspin.generation.progress import Progress
from axolotl_tspin.generation.selection import current_advantages, read_selection, select_rows
from axolotl_tspin.generation.shards import Shard
from axolotl_tspin.logs import get_logger
from axolotl_tspin.resolve.generation_plan import GenerationPlan
from axolotl_tspin.resolve.loading import LoadedPolicy
from axolotl_tspin.run.files import digest
from axolotl_tspin.run.logps import kept_scores, logps_of_rows
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.run.tables import DamagedTable
from axolotl_tspin.run.triplets import Sources, assemble_triplets, needed_rows

LOG = get_logger(__name__)


class SplitSampling:
    """One split in the due iteration: its rows to sample, their settings and their files."""

    def __init__(self, plan: GenerationPlan, cfg: Any, split: str, policy: str) -> None:
        self.plan = plan
        self.name = split
        self.number = plan.due.iteration
        self.iteration = plan.run.iteration(self.number)
        self.prompts = Prompts(plan.run.prompts(split))
        self.folder = self.iteration.responses(split)
        self.settings = plan.config.generation
        self.seed = cfg.seed if cfg.seed is not None else 42
        self.sequence_len: int = cfg.sequence_len
        self.policy = policy
        self.made_with = {
            "prompts_fingerprint": self.prompts.fingerprint,
            "iteration": self.number,
            "policy": policy,
            "seed": self.seed,
            "sequence_len": self.sequence_len,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "max_new_tokens": self.settings.max_new_tokens,
        }
        rows = self.prompts.rows
        self.first = (
            self.prompts.first_rows_with_same_prompt()
            if self.settings.deduplicate
            else np.arange(rows)
        )
        self.sampled = np.ones(rows, dtype=bool)

    @property
    def needed(self) -> np.ndarray:
        return needed_rows(self.prompts, self.sampled, self.first)

    def select(self, policy: Callable[[], LoadedPolicy]) -> None:
        """Choose the rows to sample, once per iteration. Held-out prompts are all sampled, since
        they show what the policy writes now."""
        if self.settings.select == "all" or self.number == 0 or self.name == "test":
            return
        path = self.iteration.selection(self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{self.name}.lock")):
            chosen = read_selection(path, self.prompts)
            if chosen is None:
                advantages = self._advantages(policy)
                chosen = select_rows(
                    path,
                    self.prompts,
                    self.settings,
                    seed=self.seed,
                    iteration=self.number,
                    advantages=advantages,
                )
        self.sampled = chosen
        LOG.info(
            "T-SPIN: %s of %s prompts get a new synthetic response (select: %s)",
            int(chosen.sum()),
            self.prompts.rows,
            self.settings.select,
        )

    def _advantages(self, load: Callable[[], LoadedPolicy]) -> np.ndarray | None:
        if self.settings.select != "advantage":
            return None
        run = self.plan.run
        scored = logps_of_rows(kept_scores(run, self.number - 1), np.arange(self.prompts.rows))
        if scored is not None:
            return scored[:, 0] - scored[:, 1]
        return current_advantages(
            load().score,
            run.iteration(self.number - 1).triplets(self.name),
            self.prompts,
        )

    def requests(self, block: Block, group_size: int) -> Iterator[list[Request]]:
        """Yield the groups of a block that lack a response.

        Groups depend only on prompts and group size. The longest prompts come first, so that
        memory runs out at once or not at all, and prompts of similar length go together.
        """
        table = self.prompts.read(self.prompts.block_of(block.rows[0]), ["prompt_ids", "stop_ids"])
        start = self.prompts.rows_of(self.prompts.block_of(block.rows[0])).start
        prompt_ids, stop_ids = table["prompt_ids"].to_pylist(), table["stop_ids"].to_pylist()
        order = sorted(block.rows, key=lambda row: (-len(prompt_ids[row - start]), row))
        missing = set(block.missing)
        for first in range(0, len(order), group_size):
            group = order[first : first + group_size]
            if missing.isdisjoint(group):
                continue
            yield [
                Request(
                    row=row,
                    prompt_ids=prompt_ids[row - start],
                    max_new_tokens=min(
                        self.settings.max_new_tokens,
                        self.sequence_len - len(prompt_ids[row - start]),
                    ),
                    seed=self._seed(row),
                    stop_ids=tuple(stop_ids[row - start]),
                )
                for row in group
            ]

    def record(
        self, request: Request, response: Response, engine: str, tokenizer: Any, prompt_hash: str
    ) -> dict[str, Any]:
        """Make a response's record under RESPONSES_SCHEMA. Its tokens end with the stop token that
        was sampled."""
        end = [] if response.stop_id is None else [response.stop_id]
        sampling = {
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "max_new_tokens": request.max_new_tokens,
            "seed": request.seed,
        }
        return {
            "row": response.row,
            "prompt_hash": prompt_hash,
            "text": tokenizer.decode(response.ids, skip_special_tokens=True),
            "ids": response.ids + end,
            "finish_reason": response.finish_reason,
            "tokens": len(response.ids),
            "iteration": self.number,
            "policy": self.policy,
            "sampling": json.dumps(sampling),
            "engine": engine,
        }

    def is_sampled(self) -> bool:
        """True if all blocks are complete, also those of other processes; damaged ones are put
        aside.

        Raises:
            TSpinError: responses were made with other settings than this process's.
        """
        return all_complete(self.folder, self.prompts, self.needed, self.made_with)

    def assemble(self) -> None:
        """Write the triplets, unless another process has done so."""
        triplets = self.iteration.triplets(self.name)
        triplets.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(triplets.with_name(f".{self.name}.lock")):
            if triplets.exists():
                return
            run, number = self.plan.run, self.number
            sources = Sources(
                responses=lambda block: block_path(self.folder, block),
                sampled=self.sampled,
                first=self.first,
                previous=run.iteration(number - 1).triplets(self.name) if number else None,
                initial=run.iteration(0).triplets(self.name) if number else None,
            )
            made_with = {**self.made_with, "select": self.settings.select}
            try:
                record = assemble_triplets(triplets, self.prompts, sources, made_with)
            except DamagedTable as error:
                raise TSpinError(
                    f"{error}. If it is a file of this iteration's responses, run the same command "
                    "again: its rows are sampled again. Responses of an earlier iteration's "
                    "triplets are never sampled again: restore the file from a copy. Or move it "
                    "and its iteration's trained.json away, run `axolotl t-spin generate`, which "
                    "rebuilds it from that iteration's responses, and put trained.json back"
                ) from error
        LOG.info(
            "T-SPIN: %s: %s sampled, %s kept from the iteration before, %s copied from a row with "
            "the same prompt; ended by %s",
            triplets,
            record["sampled"],
            record["kept"],
            record["copied"],
            record["finish_reasons"],
        )

    def _seed(self, row: int) -> int:
        """Derive a row's sampling seed from the run's seed, the iteration, the split, the row."""
        return int(digest([self.seed, self.number, self.name, row]), 16) % 2**31


def sample_split(split: SplitSampling, shard: Shard, load: Callable[[], tuple[Engine, Any]]) -> int:
    """Sample the missing rows of this shard's blocks; return the number of responses."""
    blocks = claim_blocks(split.folder, split.prompts, split.needed, split.made_with, shard)
    first = next(blocks, None)
    if first is None:
        return 0
    open_blocks: dict[int, Block] = {}
    asked: dict[int, tuple[Request, str]] = {}
    made = 0

    def groups(group_size: int) -> Iterator[list[Request]]:
        for block in itertools.chain([first], blocks):
            number = split.prompts.block_of(block.rows[0])
            open_blocks[number] = block
            if not block.missing:
                open_blocks.pop(number).publish(0.0)
                continue
            hashes = split.prompts.read(number, ["prompt_hash"])["prompt_hash"].to_pylist()
            start = split.prompts.rows_of(number).start
            for group in split.requests(block, group_size):
                asked.update({r.row: (r, hashes[r.row - start]) for r in group})
                yield group

    total, done = int(split.needed.sum()), rows_done(split.folder)[0]
    try:
        engine, tokenizer = load()
        since = time.monotonic()
        with Progress(total=total, done=done) as progress:
            engine.on_tokens = progress.decoded
            for responses in engine.sample(groups(engine.group_size)):
                by_block: dict[int, list[dict[str, Any]]] = {}
                for response in responses:
                    request, prompt_hash = asked.pop(response.row)
                    record = split.record(request, response, engine.name, tokenizer, prompt_hash)
                    by_block.setdefault(split.prompts.block_of(response.row), []).append(record)
                for number, records in by_block.items():
                    block = open_blocks[number]
                    made += block.add(records)
                    if not block.missing:
                        now = time.monotonic()
                        open_blocks.pop(number).publish(now - since)
                        since = now
                progress.advance(len(responses), sum(len(r.ids) for r in responses))
    finally:
        for block in (open_blocks or {0: first}).values():
            block.leave()
    return made
