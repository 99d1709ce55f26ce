"""HTML pages: whatever a name holds stays text, and a template cannot leave out a value without a word."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from neural_fields.core.html_pages import render_html

HOSTILE = """<script>alert(1)</script>" onload='alert(2)' &amp; {{ name }}"""


def test_values_are_escaped_in_text_and_in_attributes_and_are_no_templates(tmp_path: Path) -> None:
    template = tmp_path / "page.html.j2"
    template.write_text('<p title="{{ name }}">{{ name }}</p>\n{% include "part.css" %}\n')
    (tmp_path / "part.css").write_text("a > b { color: red; }")
    escaped = "&lt;script&gt;alert(1)&lt;/script&gt;&#34; onload=&#39;alert(2)&#39; &amp;amp; {{ name }}"
    found = render_html(template, name=HOSTILE)
    assert found == f'<p title="{escaped}">{escaped}</p>\na > b {{ color: red; }}'


def test_a_value_that_is_missing_is_an_error_and_not_an_empty_place(tmp_path: Path) -> None:
    template = tmp_path / "page.html.j2"
    template.write_text("<p>{{ nmae }}</p>")
    with pytest.raises(jinja2.UndefinedError, match="nmae"):
        render_html(template, name="turtle")
