import pytest

from rmtrain.data.text.templates import CHAT_TEMPLATES
from rmtrain.data.text.tokenize import Form, form_of, marked, writes_contents_as_they_are
from tests.helpers import LLAMA_TEMPLATE

LOOP = "{% for m in messages %}<BODY>{% endfor %}"


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES.values(), LLAMA_TEMPLATE], ids=[*CHAT_TEMPLATES, "llama"])
def test_the_built_in_templates_only_write_contents(template: str) -> None:
    assert writes_contents_as_they_are(template)


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content }}",
        "{{ m['role'] | upper }}: {{ m['content'] ~ '\n' }}",
        "{{ ('<' + m.role + '>' + m.content) if loop.first else m.content }}",
        "{% if m.role == 'user' and loop.index0 > 2 %}{{ m.content }}{% else %}{{ m.content }}{% endif %}",
        "{% if messages | length > 3 and messages[0].role == 'system' %}{{ messages[-1]['content'] }}{% endif %}",
        "{% set mark = '#' ~ m.role %}{{ mark + m.content }}{% if loop.last %}{% break %}{% endif %}",
    ],
)
def test_what_only_writes_contents_is_seen_to_do_so(body: str) -> None:
    assert writes_contents_as_they_are(LOOP.replace("<BODY>", body))


@pytest.mark.parametrize(
    "body",
    [
        "{{ m.content | trim }}",
        "{{ m.content.strip() }}",
        "{{ m.content[:5] }}",
        "{{ m.content * 2 }}",
        "{{ (m.content ~ m.role) | upper }}",
        "{% if '</think>' in m.content %}x{% endif %}{{ m.content }}",
        "{{ m.content if m.content else 'nothing' }}",
        "{% set text = m.content %}{{ text }}",
        "{% set n = m %}{{ n.content | upper }}",
        "{% set messages = messages[1:] %}",
        "{% set m = messages[0] %}{{ m.content }}",
        "{% for word in m.content %}{{ word }}{% endfor %}",
        "{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
        "{% filter upper %}{{ m.content }}{% endfilter %}",
        "{% set whole %}{{ m.content }}{% endset %}{{ whole[1:] }}",
        "{% macro say(x) %}{{ x }}{% endmacro %}{{ say(m.content) }}",
        "{{ loop.previtem.content }}",
        "{{ loop.changed(m.content) }}",
        "{{ messages | tojson }}",
        "{{ m | tojson }}",
        "{{ m['con' + 'tent'] }}",
        "{{ m.values() | join }}",
        "{{ m.content is defined }}",
        "{{ messages[i].content }}",
        "{{ (messages | last).content }}",
        "{% generation %}{{ m.content }}{% endgeneration %}",
        "{% include 'x' %}",
        "{% if %}",
    ],
)
def test_in_doubt_a_template_looks_at_contents(body: str) -> None:
    assert not writes_contents_as_they_are(LOOP.replace("<BODY>", body))


def test_a_form_holds_what_stands_around_the_contents() -> None:
    form = form_of(f"<s>{marked(0)}\n\n{marked(1)}</s>", 2)
    assert form == Form(("<s>", "\n\n", "</s>"))
    assert form.text(["one", "two"]) == "<s>one\n\ntwo</s>"
    assert [form.position(before) for before in ([], ["one"])] == [3, 8]


def test_contents_that_are_not_written_once_and_in_turn_have_no_form() -> None:
    for text in (marked(0), marked(1) + marked(0), marked(0) + marked(1) + marked(1), ""):
        assert form_of(text, 2) is None
