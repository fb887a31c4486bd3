"""The reference page says what the parsers say."""

from __future__ import annotations

from tests.helpers.tools_page import PAGE, page


def test_the_page_of_the_tools_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert text == page(text), "write it anew: python -m tests.helpers.tools_page"
