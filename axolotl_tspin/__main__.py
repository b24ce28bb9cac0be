"""`axolotl-tspin …` and `python -m axolotl_tspin …`: the commands of `axolotl t-spin`, without the
logo and the start-up time of `axolotl`."""

import sys

from axolotl_tspin import need_axolotl


def main() -> None:
    try:
        need_axolotl("`axolotl-tspin`")
    except ImportError as error:
        sys.exit(str(error))
    from axolotl_tspin.commands import t_spin

    t_spin(prog_name="axolotl-tspin")


if __name__ == "__main__":
    main()
