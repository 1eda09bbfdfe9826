"""Charts: well-formed, escaped, and within their frame."""

from xml.etree import ElementTree

from tritonsched.sim import svg

X = svg.Axis("load", 0.5, 2.0, svg.plain)
Y = svg.Axis("share <&>", 0.0, 1.0, svg.percent)


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_a_chart_has_a_line_a_name_and_its_dots_say_their_figures() -> None:
    drawn = [
        svg.Line("a<b", "#123456", [(0.5, 0.2, 0.05), (2.0, 0.9, None)]),
        svg.Line("smooth", "#654321", [(0.5, 0.1, None), (2.0, 0.1, None)], dots=False),
    ]
    made = parsed(svg.lines("title & more", X, Y, drawn, mark=1.0))
    assert len(made.findall("polyline")) == 2
    assert [dot.findtext("title") for dot in made.findall("circle")] == [
        "a<b: 0.5, 20%",
        "a<b: 2, 90%",
    ]
    assert made.get("aria-label") == "title & more"
    assert [line.get("class") for line in made.findall("line")].count("mark") == 1


def test_points_lie_within_the_frame_even_above_the_axis() -> None:
    made = parsed(svg.lines("t", X, Y, [svg.Line("a", "#000", [(0.5, 3.0, None), (2, -1, None)])]))
    line = made.find("polyline")
    assert line is not None
    points = [tuple(map(float, p.split(","))) for p in (line.get("points") or "").split()]
    assert points == [(svg.LEFT, svg.TOP), (svg.WIDTH - svg.RIGHT, svg.HEIGHT - svg.BOTTOM)]


def test_ticks_are_round_and_within_the_range() -> None:
    assert svg.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert svg.ticks(3.0, 11.0) == [4.0, 6.0, 8.0, 10.0]
    assert svg.ticks(1.0, 1.0) == [1.0]


def test_batches_are_drawn_on_their_devices_and_cut_at_the_edge() -> None:
    boxes = [
        svg.Box("gpu0", 90.0, 110.0, "m: 4 rows", "#0072b2", 0.0),
        svg.Box("gpu1", 120.0, 130.0, "n: 1 row", "#0072b2", 0.5),
    ]
    made = parsed(svg.lanes("devices", 100.0, 200.0, ["gpu0", "gpu1"], boxes))
    groups = made.findall("g")
    assert [group.findtext("title") for group in groups] == ["m: 4 rows", "n: 1 row"]
    first = groups[0].find("rect")
    assert first is not None
    assert float(first.get("x") or 0) == svg.LEFT
    assert len(groups[1].findall("rect")) == 2  # the batch and its red foot
