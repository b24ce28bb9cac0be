"""Drive vLLM directly, for benchmarks/generation.py; this runs in vLLM's environment.

It reads a JSON line of settings. For each further line it samples all prompts once and prints the
number of tokens and seconds.
"""

import json
import os
import sys
import time


def main() -> None:
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    from vllm import LLM, SamplingParams

    llm = LLM(**settings["llm"])
    params = [
        SamplingParams(
            temperature=1.0,
            max_tokens=settings["max_new_tokens"],
            seed=row if settings["seeded"] else None,
            stop_token_ids=settings["stop_ids"],
            detokenize=False,
        )
        for row in range(len(settings["prompts"]))
    ]
    prompts = [{"prompt_token_ids": ids} for ids in settings["prompts"]]
    print("ready", file=results)
    for _ in sys.stdin:
        started = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        responses = [output.outputs[0] for output in outputs]
        # The token that ends a response is not counted.
        tokens = sum(len(r.token_ids) - (r.finish_reason == "stop") for r in responses)
        print(json.dumps([tokens, time.monotonic() - started]), file=results)


if __name__ == "__main__":
    main()
