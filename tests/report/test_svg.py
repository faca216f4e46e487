"""What is drawn is well-formed, inside, and says in words what it shows."""

from xml.etree import ElementTree

from markupsafe import Markup

from rmtrain.report.svg import Frame, circle, drawing, path, text


def parsed(picture: Markup) -> ElementTree.Element:
    return ElementTree.fromstring(str(picture))


def test_a_picture_has_a_title_and_a_text_and_escapes_both() -> None:
    root = parsed(drawing([text(1, 2, "<b>&", "label")], "a-b", "<script>", 'x"y'))
    assert root.attrib["aria-labelledby"] == "a-b-title a-b-text"
    assert root.attrib["role"] == "img"
    assert [(child.tag, child.attrib.get("id"), child.text) for child in root] == [
        ("title", "a-b-title", "<script>"),
        ("desc", "a-b-text", 'x"y'),
        ("text", None, "<b>&"),
    ]


def test_a_frame_puts_values_where_its_axes_say() -> None:
    frame = Frame((0, 10), (0, 1), "step")
    frame.line([(0, 0), (10, 1)], "accent", dots=True)
    frame.steps([0, 5, 10], [1, 0.5], "neutral")
    frame.reference(0.5)
    root = parsed(drawing(frame.parts, "f", "t", "d"))
    left, top, right, bottom = frame.inside
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter("circle")]
    assert dots == [(round(left, 1), round(bottom, 1)), (round(right, 1), round(top, 1))]
    words = [word.text for word in root.iter("text")]
    assert {"0.00", "0.25", "1.00", "10", "step"} <= set(words)
    classes = [mark.attrib["class"] for mark in root.iter("path")]
    assert {"grid", "axis", "reference", "line accent", "area neutral", "line neutral"} <= set(classes)


def test_marks_are_elements() -> None:
    assert str(path([(1, 2), (3, 4.25)], "line")) == '<path class="line" d="M1.0 2.0L3.0 4.2"/>'
    assert 'r="3"' in circle(0, 0, 3, "accent")
