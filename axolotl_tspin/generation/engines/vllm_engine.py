"""Engine with vLLM in worker processes, with this interpreter or another environment's.

Each worker is a separate engine on separate GPUs. Requests go to the worker with the fewest in
flight, so none waits for another's batch to end.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.engines.engine import Request, Response
from axolotl_tspin.generation.engines.responses import response_from_ids
from axolotl_tspin.logs import get_logger
from axolotl_tspin.run.directory import Policy

LOG = get_logger(__name__)

IN_FLIGHT = 512
"""Requests that a worker holds at once, about twice as many as vLLM computes together."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as `max_lora_rank`; newer versions accept 1 as well."""

PASSED_ON = (
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "max_model_len",
    "enable_prefix_caching",
    "enforce_eager",
)
"""Keys of Axolotl's `vllm:` block that are vLLM's own arguments."""


class VllmEngine:
    """Answers through one or more vLLM workers.

    Args:
        settings: the workers' first line of input; see `vllm_worker`.
        python: the interpreter that has vLLM.
        gpus: CUDA_VISIBLE_DEVICES of each worker; None leaves the environment unchanged.

    Raises:
        TSpinError: a worker does not start.
    """

    group_size = 1
    on_tokens: Callable[[int], None] | None = None

    def __init__(self, settings: Mapping[str, Any], *, python: str, gpus: list[str | None]) -> None:
        self._answers: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
        self._workers: list[subprocess.Popen[str]] = []
        self._in_flight = [0] * len(gpus)
        self._asked: dict[int, Request] = {}
        worker = Path(__file__).with_name("vllm_worker.py")
        # The worker must not find this environment's packages before its own.
        base = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        try:
            for number, devices in enumerate(gpus):
                process = subprocess.Popen(
                    [python, str(worker)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                    env=base | ({} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}),
                )
                self._workers.append(process)
                self._write(number, settings)
                threading.Thread(target=self._read, args=(number,), daemon=True).start()
            for _ in gpus:
                self.name = self._next()["ready"]
        except OSError as error:
            self.close()
            raise TSpinError(
                f"`t_spin.generation.python: {python}` cannot be run ({error.strerror}); name the "
                "interpreter of an environment that has vLLM"
            ) from error
        except BaseException:
            self.close()
            raise

    def sample(self, groups: Iterable[list[Request]]) -> Iterator[list[Response]]:
        for [request] in groups:
            while min(self._in_flight) >= IN_FLIGHT:
                yield [self._response()]
            worker = self._in_flight.index(min(self._in_flight))
            self._in_flight[worker] += 1
            self._asked[request.row] = request
            self._write(worker, request._asdict())
        while any(self._in_flight):
            yield [self._response()]

    def close(self) -> None:
        for process in self._workers:
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        for process in self._workers:
            if not any(self._in_flight):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=30)
            # vLLM's processes outlive a worker that was killed.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _response(self) -> Response:
        answer = self._next()
        request = self._asked.pop(answer["row"])
        return response_from_ids(request, answer["ids"], answer["finish_reason"])

    def _next(self) -> dict[str, Any]:
        number, answer = self._answers.get()
        if answer is None:
            raise TSpinError(
                f"the vLLM worker {number} {self._end(number)}; its own error is above. "
                "What was sampled is kept: fix the cause and run the same command again"
            )
        if "ready" not in answer:
            self._in_flight[number] -= 1
        return answer

    def _end(self, number: int) -> str:
        """Describe how a worker that gives no more answers ended."""
        try:
            return f"ended with status {self._workers[number].wait(timeout=30)}"
        except subprocess.TimeoutExpired:
            return "still runs, but gave an answer that is not JSON"

    def _write(self, number: int, value: Mapping[str, Any]) -> None:
        stdin = self._workers[number].stdin
        assert stdin is not None
        # If a worker is gone, its reader thread reports that, with its status.
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(value) + "\n")
            stdin.flush()

    def _read(self, number: int) -> None:
        stdout = self._workers[number].stdout
        assert stdout is not None
        try:
            for line in stdout:
                self._answers.put((number, json.loads(line)))
        except ValueError:
            pass  # a killed worker left half a line
        finally:
            self._answers.put((number, None))


def load_vllm(policy: Policy, config: GenerationConfig, cfg: Any) -> VllmEngine:
    """Start vLLM with the policy, with the settings of the YAML's `vllm:` block.

    Args:
        cfg: Axolotl's validated configuration.

    Raises:
        TSpinError: the policy is quantised in a way that vLLM would not repeat, or its adapter has
            a rank that vLLM does not take.
    """
    block = cfg.vllm.to_dict() if cfg.vllm else {}
    llm = {key: block[key] for key in PASSED_ON if block.get(key) is not None}
    llm |= {
        "model": policy.base_model,
        "dtype": vllm_dtype(cfg),
        "skip_tokenizer_init": True,
        # The checkpoint's sampling settings must not add to the YAML's.
        "generation_config": "vllm",
        "seed": 0,
        "trust_remote_code": bool(cfg.trust_remote_code),
    }
    if cfg.revision_of_model and policy.base_model == cfg.base_model:
        llm["revision"] = cfg.revision_of_model
    llm.setdefault("max_model_len", cfg.sequence_len)
    if cfg.load_in_8bit:
        raise TSpinError(
            "`load_in_8bit` with `backend: vllm`: vLLM would not load the base model's 8-bit "
            "weights as training does; use `backend: transformers`"
        )
    if cfg.load_in_4bit:
        llm["quantization"] = "bitsandbytes"
    if policy.adapter_dir:
        llm |= {"enable_lora": True, "max_lora_rank": max_lora_rank(Path(policy.adapter_dir))}
    settings = {"llm": llm, "sampling": sampling_params(config), "adapter": policy.adapter_dir}
    workers = block.get("data_parallel_size") or 1
    LOG.info("T-SPIN: starting %s vLLM worker(s)", workers)
    return VllmEngine(
        settings,
        python=config.python or sys.executable,
        gpus=_gpus(workers, block.get("tensor_parallel_size") or 1),
    )


def max_lora_rank(adapter: Path) -> int:
    """Find the smallest rank accepted by vLLM that holds the adapter's.

    Raises:
        TSpinError: the adapter's rank is larger than all of them.
    """
    rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
    fitting = [known for known in LORA_RANKS if known >= rank]
    if not fitting:
        raise TSpinError(
            f"{adapter / 'adapter_config.json'}: r = {rank}, and vLLM takes LoRA adapters up to "
            f"rank {LORA_RANKS[-1]}; use `backend: transformers`"
        )
    return fitting[0]


def sampling_params(config: GenerationConfig) -> dict[str, Any]:
    """Translate the sampling settings to vLLM's names."""
    return {"temperature": config.temperature, "top_p": config.top_p}


def vllm_dtype(cfg: Any) -> str:
    """Choose the type that the YAML names, else the one that training computes in.

    vLLM's own `auto` would round float32 weights to 16 bits, and so sample from another policy.
    """
    named = cfg.vllm.dtype if cfg.vllm else None
    if named and named != "auto":
        return named
    return "bfloat16" if cfg.bf16 else "float16" if cfg.fp16 else "float32"


def _gpus(workers: int, each: int) -> list[str | None]:
    """Divide the GPUs among the workers; a single worker gets all."""
    if workers == 1:
        return [None]
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if not devices:
        return [None] * workers  # CPU: the workers share it
    if len(devices) < workers * each:
        raise TSpinError(
            f"`vllm.data_parallel_size: {workers}` with `tensor_parallel_size: {each}` needs "
            f"{workers * each} GPUs; there are {len(devices)}"
        )
    return [",".join(devices[i * each : (i + 1) * each]) for i in range(workers)]
