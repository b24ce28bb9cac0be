"""Templates of the report and of the model card (jinja2)."""

import re

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup, escape


def template(name: str) -> Template:
    """Load one of the files next to this module; in it, undefined names are errors."""
    environment = Environment(
        loader=PackageLoader("axolotl_tspin.diagnostics.templates", ""),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = lambda value, digits=2: (
        "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")
    )
    environment.filters["code"] = lambda text: Markup(
        re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text)))
    )
    environment.filters["percent"] = lambda value: f"{value:.0%}"
    return environment.get_template(name)
