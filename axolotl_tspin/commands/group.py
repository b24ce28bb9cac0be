"""The command group of `axolotl t-spin …`, which turns errors into messages and exit codes."""

from pathlib import Path
from typing import Any

import click

from axolotl_tspin.errors import StepFailed, TSpinError, Unexpected

CONFIG = click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
AS_JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON. Programs should call `axolotl-tspin …`: `axolotl` prints a logo.",
)
VERBOSE = click.option(
    "--verbose",
    is_flag=True,
    help="Show what Axolotl and the libraries print, instead of writing it into a log file.",
)


class TSpinGroup(click.Group):
    """A group whose commands may raise the project's errors."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. TSpinError and Unexpected end it as click's errors do, StepFailed with the
        step's exit status."""
        try:
            return super().invoke(ctx)
        except (TSpinError, Unexpected) as error:
            raise click.ClickException(str(error)) from error
        except StepFailed as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.status if error.status > 0 else 128 - error.status)
