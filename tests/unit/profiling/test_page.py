"""The curves: all figures are there, and nothing is asked of anybody."""

import re

from tests.unit.profiling.profiles import point, profile, times
from tritonsched.profiling.page import page


def test_every_figure_of_the_profile_is_on_the_page() -> None:
    text = page(profile(m=times(point(1, 5.5, 6.5), point(8, 9.25, 12.75))))
    for figure in ("5.500", "6.500", "9.250", "12.750", "A CPU", "A GPU", "2.51.0"):
        assert figure in text, figure
    assert text.count("<svg") == 2


def test_the_page_asks_for_nothing_from_outside_and_runs_nothing() -> None:
    text = page(profile(m=times(point(1, 5.5))))
    assert not re.search(r"https?://|<script|@import|url\(", text)


def test_names_are_text_and_not_markup() -> None:
    text = page(profile(**{"<img src=x>": times(point(1, 5.5))}))
    assert "<img" not in text
    assert "&lt;img src=x&gt;" in text
