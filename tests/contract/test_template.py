import pytest

from contract.template import of_column, parse


@pytest.mark.parametrize(
    ("text", "values", "rendered"),
    [
        ("{a}", {"a": "x"}, "x"),
        (r"{a}\n{b}\t\\n", {"a": "x", "b": "y"}, "x\ny\t\\n"),
        ("{{{a}}}", {"a": "x"}, "{x}"),
        ("{a}: {doc.text}", {"a": None, "doc.text": "y"}, ": y"),
        ("{a}{a}", {"a": "x"}, "xx"),
        ("of {a}", {"a": None}, None),
        ("of {a}", {"a": ""}, "of "),
    ],
)
def test_a_template_is_filled_with_a_rows_values(
    text: str, values: dict[str, str | None], rendered: str | None
) -> None:
    assert parse(text).render(values) == rendered


@pytest.mark.parametrize("text", ["", "words", "{", "}", "{a", "a}", "{}", "{a{b}}", r"{a}\d", "{a}\\"])
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no column|counterpart|no escape"):
        parse(text)


@pytest.mark.parametrize("name", ["body", "a.b", "a{b}c", "\\", "\\n", "a\nb", "{{", "dc:title", "a!r"])
def test_a_columns_name_survives_in_a_template(name: str) -> None:
    template = parse(of_column(name))
    assert (template.columns, template.plain, template.render({name: "x"})) == ((name,), name, "x")


def test_people_see_a_columns_name_or_the_template() -> None:
    assert parse("{body}").shown == "body"
    for text in (r"{title}\n{body}", r"a\\b {{x}} {c\{d}"):
        assert parse(text).shown == text
