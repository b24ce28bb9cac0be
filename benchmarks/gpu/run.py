"""Check and measure everything that needs a GPU, stage by stage, on one CUDA device.

    python benchmarks/gpu/run.py                     # all stages, meant for half an hour
    python benchmarks/gpu/run.py --stages 1,3        # only these
    python benchmarks/gpu/run.py --dry               # tiny, on the CPU
    python benchmarks/gpu/run.py --table gpu.jsonl   # only the tables of earlier results

torch and transformers are enough; what else a stage needs is used if it is there. Every stage is a
process with a time limit, so a fault or a hang in one does not end the others. Results are appended
to `--out` as they come, a JSON object a line; the tables are printed at the end. The exit status is
1 if a stage failed. A missed target is no failure, the tables show it.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from table import tables_of

HERE = Path(__file__).resolve().parent
ERROR_LINES = 20
"""Last lines of a failed stage's log that its record keeps."""


class Stage(NamedTuple):
    """A stage: a file with `SIZES` ("full" and "dry") and `run(device, sizes)`, an iterator over
    results as they are measured."""

    number: int
    title: str
    file: Path


STAGES = tuple(
    Stage(number, title, HERE / name)
    for number, title, name in (
        (0, "The machine", "machine.py"),
        (1, "Attention against dense mathematics", "stage_1_attention.py"),
        (2, "Whole policies, shared against padded", "stage_2_policies.py"),
        (3, "Attention of one layer, timed", "stage_3_layer.py"),
        (4, "The head", "stage_4_head.py"),
        (5, "A training step beside TRL's DPO", "stage_5_step.py"),
        (6, "Sampling", "stage_6_sampling.py"),
        (7, "Curves of both layouts, and planned memory", "stage_7_curves.py"),
        (8, "The README's YAML through the commands", "stage_8_commands.py"),
    )
)


class Log:
    """Appends records to a file, each written through at once.

    `machine` has the facts that the first stage found; every later stage begins with them.
    """

    def __init__(self, file: TextIO) -> None:
        self.records: list[dict[str, Any]] = []
        self.machine: dict[str, Any] = {}
        self._file = file
        self._run = time.strftime("%Y-%m-%dT%H:%M:%S")

    def add(self, stage: Stage, event: str, **record: Any) -> None:
        record = {
            "run": self._run,
            "stage": stage.number,
            "title": stage.title,
            "event": event,
            **record,
        }
        self.records.append(record)
        self.machine |= record.get("facts", {})
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def run_stages(
    stages: Iterable[Stage], log: Log, logs: Path, *, device: str, sizes: str, minutes: float
) -> bool:
    """Run stages one after the other; return True if none failed.

    Args:
        logs: folder for what the stages print.
        minutes: limit of each stage.
    """
    logs.mkdir(parents=True, exist_ok=True)
    outcomes = [_run_stage(stage, log, logs, device, sizes, minutes) for stage in stages]
    return all(outcomes)


def _run_stage(stage: Stage, log: Log, logs: Path, device: str, sizes: str, minutes: float) -> bool:
    print(f"stage {stage.number}: {stage.title}", file=sys.stderr, flush=True)
    command = shlex.join(["python", *sys.argv])
    machine = dict(log.machine)
    log.add(stage, "began", command=command, device=device, sizes=sizes, machine=machine)
    started, failed, late = time.monotonic(), False, threading.Event()
    printed = logs / f"stage_{stage.number}.txt"
    with open(printed, "w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), str(stage.file), device, sizes],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )

        def end() -> None:
            late.set()
            _kill(process)

        limit = threading.Timer(minutes * 60, end)
        limit.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                result = json.loads(line)
                failed = failed or bool(result.get("failed"))
                log.add(stage, "result", **result)
            process.wait()
        finally:
            limit.cancel()
            _kill(process)  # also whatever the stage started
    ended = {"seconds": round(time.monotonic() - started, 1)}
    if late.is_set():
        ended |= {"outcome": "failed", "error": f"ended after its limit of {minutes:g} minutes"}
    elif process.returncode:
        tail = printed.read_text(errors="replace").splitlines()[-ERROR_LINES:]
        status = f"exit status {process.returncode}"
        ended |= {"outcome": "failed", "error": "\n".join([status, *tail])}
    elif failed:
        ended |= {"outcome": "failed", "error": "see the rows that failed"}
    else:
        ended |= {"outcome": "ok"}
    log.add(stage, "ended", **ended)
    print(f"stage {stage.number}: {ended['outcome']}", file=sys.stderr, flush=True)
    return ended["outcome"] == "ok"


def _kill(process: subprocess.Popen) -> None:
    """End a stage's processes, if any are left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def chosen(numbers: str | None) -> list[Stage]:
    """The machine and the stages of a list such as `1,3`; all of them for None."""
    if numbers is None:
        return list(STAGES)
    wanted = {int(number) for number in numbers.split(",")}
    unknown = wanted - {stage.number for stage in STAGES}
    if unknown:
        raise SystemExit(f"there is no stage {', '.join(map(str, sorted(unknown)))}")
    return [stage for stage in STAGES if stage.number in wanted | {0}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", help="numbers, such as 1,3 (default: all)")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="default: gpu.jsonl")
    parser.add_argument("--minutes", type=float, default=10, help="limit of each stage")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a file's tables only")
    args = parser.parse_args()
    if args.table:
        print(tables_of(map(json.loads, args.table.read_text().splitlines())))
        return 0
    stages = chosen(args.stages)
    # No stage may wait for a network, and the Trainer would spread batches over all GPUs.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "" if args.dry else "0")
    with open(args.out, "a") as file:
        log = Log(file)
        passed = run_stages(
            stages,
            log,
            args.out.with_suffix(".logs"),
            device="cpu" if args.dry else "cuda",
            sizes="dry" if args.dry else "full",
            minutes=args.minutes,
        )
    print(tables_of(log.records))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
