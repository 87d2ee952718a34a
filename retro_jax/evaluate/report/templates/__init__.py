"""The templates of pages, and `render`: the one file that imports Jinja2.

page.html is the frame with the style sheet, macros.html has the reusable pieces (table, figure, figures), report.html extends
the frame. Every value is escaped, and a missing name is an error. It imports nothing else of the package.
"""

from functools import cache

import jinja2


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("retro_jax.evaluate.report.templates", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values) -> str:
    """Renders a template with the values.

    Raises:
      jinja2.UndefinedError: it uses a name that is not among them.
    """
    return _environment().get_template(template).render(**values)
