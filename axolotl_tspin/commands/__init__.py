"""The commands of `axolotl t-spin …`, around `axolotl train`.

Imports stay inside the commands, because `axolotl --help` loads this package.
"""

import click

from axolotl_tspin import __version__
from axolotl_tspin.commands.data import export, import_, schema
from axolotl_tspin.commands.evaluating import lm_eval, reward_check
from axolotl_tspin.commands.group import TSpinGroup
from axolotl_tspin.commands.planning import plan
from axolotl_tspin.commands.running import generate, run
from axolotl_tspin.commands.watching import compare, report, status


@click.group(name="t-spin", cls=TSpinGroup)
@click.version_option(__version__, prog_name="axolotl-tspin")
def t_spin() -> None:
    """T-SPIN: triplet-based self-play fine-tuning."""


for _command in (
    generate,
    run,
    status,
    plan,
    export,
    import_,
    compare,
    report,
    lm_eval,
    reward_check,
    schema,
):
    t_spin.add_command(_command)
