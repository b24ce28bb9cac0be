"""A vLLM engine behind a pipe. It runs in the interpreter that has vLLM, so it imports nothing
else.

The first line on standard input holds the settings (JSON); every further line is a request.
Standard output gets a line when the engine is ready, and one for every response. Everything that
vLLM prints goes to standard error.

    {"llm": {…LLM's arguments}, "sampling": {…SamplingParams'}, "adapter": {"path": …, "rank": …}}
    {"row": 3, "prompt_ids": […], "max_new_tokens": 256, "seed": 17, "stop_ids": [2]}
    {"ready": "vllm 0.11.0"}
    {"row": 3, "ids": […], "finish_reason": "stop"}
"""

import json
import os
import queue
import sys
import threading


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())

    import vllm
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        # Chunked prefill rewinds a request's random generator, which a CPU's generator cannot do.
        settings["llm"]["enable_chunked_prefill"] = False
    engine = LLM(**settings["llm"]).llm_engine
    adapter = settings["adapter"] and LoRARequest("policy", 1, settings["adapter"])
    print(json.dumps({"ready": f"vllm {vllm.__version__}"}), file=answers)

    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    while True:
        # Wait for a request only when there is nothing to compute.
        while not (engine.has_unfinished_requests() and requests.empty()):
            request = requests.get()
            if request is None:
                return  # the parent is done, or gone
            params = SamplingParams(
                **settings["sampling"],
                max_tokens=request["max_new_tokens"],
                seed=request["seed"],
                stop_token_ids=request["stop_ids"],
                detokenize=False,
            )
            prompt = {"prompt_token_ids": request["prompt_ids"]}
            engine.add_request(str(request["row"]), prompt, params, lora_request=adapter)
        for output in engine.step():
            if output.finished:
                print(json.dumps(_answer(output)), file=answers)


def _read(requests: queue.SimpleQueue) -> None:
    try:
        for line in sys.stdin:
            requests.put(json.loads(line))
    except ValueError:
        pass  # the parent left half a line when it was killed
    finally:
        requests.put(None)


def _answer(output) -> dict:  # type: ignore[no-untyped-def]
    completion = output.outputs[0]
    answer = {
        "row": int(output.request_id.split("-")[0]),
        "ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
    }
    if completion.logprobs is not None:
        answer["logps"] = [
            step[token].logprob
            for step, token in zip(completion.logprobs, completion.token_ids, strict=True)
        ]
    return answer


if __name__ == "__main__":
    main()
