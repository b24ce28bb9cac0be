"""Axolotl settings that cannot go with T-SPIN (yet), and why."""

from collections.abc import Mapping
from typing import Any

from axolotl_tspin.errors import TSpinError

REFUSED = {
    "sample_packing": "a triplet's three responses must stay together in one batch",
    "eval_sample_packing": "a triplet's three responses must stay together in one batch",
    "batch_flattening": "a triplet's three responses must stay together in one batch",
    "reward_model": "T-SPIN trains a policy, not a reward model",
    "process_reward_model": "T-SPIN trains a policy, not a reward model",
    "streaming": "every prompt needs its responses before training; a stream has no fixed rows",
    "pretraining_dataset": "T-SPIN needs prompts with annotated responses",
    "train_on_inputs": "the loss takes log-probabilities of responses given prompts",
    "skip_prepare_dataset": "the t_spin strategies do the tokenising that this would skip",
    "push_dataset_to_hub": "Axolotl keys that copy by configuration, so it would return the "
    "triplets of an earlier iteration",
    "trainer_cls": "T-SPIN brings its own trainer",
    "orpo_alpha": "T-SPIN brings its own loss",
    "use_eaft": "T-SPIN brings its own loss",
    "use_dft": "T-SPIN brings its own loss",
    "label_smoothing_factor": "T-SPIN brings its own loss",
    "processor_type": "multimodal data is not supported yet",
    "do_causal_lm_eval": "it evaluates rows of one response; use `axolotl lm-eval` on the model",
    "eval_table_size": "it reads evaluation rows of one response",
    "generate_samples": "it reads rows of one response",
}


def refuse_contradictions(cfg: Mapping[str, Any]) -> None:
    """Raise TSpinError for a key of the YAML that contradicts `rl: t_spin`."""
    for key, reason in REFUSED.items():
        if cfg.get(key):
            raise TSpinError(f"`{key}` does not go with `rl: t_spin`: {reason}. Remove it")
    if (cfg.get("context_parallel_size") or 1) > 1:
        raise TSpinError(
            "`context_parallel_size` does not go with `rl: t_spin` yet: a response's "
            "log-probability is a sum over a whole row. Remove it"
        )
