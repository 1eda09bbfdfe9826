"""The page: one file, nothing from outside, every contender in it."""

import re
from html.parser import HTMLParser

from tritonsched.sim.campaign import Plan, Row, execute
from tritonsched.sim.page import page

PLAN = Plan(["W14", "W3"], ["lite", "edf"], loads=(0.1, 0.3), seeds=2, length=200)
VOID = {"meta"}


class Nesting(HTMLParser):
    """Fails on a tag that is closed out of turn; HTML's own omissions are not used."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opened and closed."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def made(plan: Plan) -> tuple[str, list[Row]]:
    rows = execute(plan)
    return page(plan, rows, "tritonsched simulate --rules 'a<b'"), rows


def test_a_page_is_whole_and_asks_for_nothing_from_outside() -> None:
    text, rows = made(PLAN)
    nesting = Nesting()
    nesting.feed(text)
    assert nesting.open == []
    assert not re.search(r"https?:|src=|@import|url\(", text)
    assert "a&lt;b" in text
    for row in rows:
        assert f"{row.mean['value']:.3f}" in text
    assert text.count("<svg") == 2 * (3 + 2)  # two workloads: three charts, devices of two rules


def test_one_load_and_one_seed_need_no_chart_over_load_and_no_interval() -> None:
    text, _ = made(Plan(["W14"], ["lite"], seeds=1, length=300))
    assert "±" not in text.split("</h1>")[1].split("<table>")[1]
    assert text.count("<svg") == 2
