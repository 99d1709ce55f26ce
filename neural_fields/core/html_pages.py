"""HTML pages from jinja2 templates (`*.html.j2`), which are kept beside the code that fills them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path


def render_html(template: Path, **values: object) -> str:
    """Renders a template with values. Every value is escaped, so that a hostile name stays text.

    Args:
        template: the template file; it may include others from its folder.
        **values: the values, by the names that the template uses.

    Raises:
        jinja2.UndefinedError: the template uses a name that is not among the values.
    """
    return compile_template(template)(values)


@functools.cache  # it takes longer than to fill the template
def compile_template(template: Path) -> Callable[..., str]:
    """Compiles a template for `render_html`, which calls the result with the values."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render
