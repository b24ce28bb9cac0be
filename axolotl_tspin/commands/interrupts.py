"""What an interrupted run has kept."""

from pathlib import Path

from axolotl_tspin.generation.blocks import rows_done
from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys


def kept(config_path: Path) -> str:
    """Describe what an interrupted run has of the step that is due."""
    config, directory = inspect_run(read_keys(config_path))
    due = directory.due(config.iterations, config.iteration)
    iteration = directory.iteration(due.iteration)
    if due.step == "done":
        return f"all iterations of the run in {directory.path} are trained"
    if due.step == "generate":
        sampled = sum(rows_done(iteration.responses(split))[0] for split in directory.splits())
        if not sampled:
            return f"no response of iteration {due.iteration} was sampled yet"
        return f"the {sampled} responses sampled for iteration {due.iteration} are kept"
    checkpoint = iteration.last_checkpoint()
    return (
        f"iteration {due.iteration}'s triplets are kept, and its training up to {checkpoint.name}"
        if checkpoint
        else f"iteration {due.iteration}'s triplets are kept; its training has no checkpoint yet "
        "(`save_steps`) and begins again"
    )
