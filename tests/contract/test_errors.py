import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, ConfigDict, ValidationError

from contract.errors import UserError, first_fault, first_line, reason


def test_an_error_is_one_line_of_found_expected_and_mend() -> None:
    @click.command()
    def fail() -> None:
        raise UserError("no engine", "there must be one", "build it: python -m engine_build")

    result = CliRunner().invoke(fail)
    assert result.exit_code == 1
    assert result.output == "Error: no engine; there must be one; build it: python -m engine_build\n"


def test_what_an_error_leaves_out_leaves_no_gap() -> None:
    assert UserError("found", hint="hint").format_message() == "found; hint"


@pytest.mark.parametrize(
    ("message", "first", "whole"),
    [
        ("no such file", "no such file", "no such file"),
        ("\n  a shape \n\n(see the log)", "a shape", "a shape (see the log)"),
        ("", "ValueError", "ValueError"),
        (" \n ", "ValueError", "ValueError"),
        ("x" * 5000, "x" * 300, "x" * 300),
    ],
)
def test_what_a_library_says_becomes_one_short_line(message: str, first: str, whole: str) -> None:
    assert (first_line(ValueError(message)), reason(ValueError(message))) == (first, whole)


def test_the_first_fault_of_a_record_is_its_place_and_what_is_wrong() -> None:
    class Record(BaseModel):
        model_config = ConfigDict(extra="forbid")
        sizes: tuple[int, ...]

    for text, told in (
        ('{"sizes": [1, "a"]}', "sizes.1: input should be a valid integer"),
        ('{"sizes": [], "b": 1}', "b: extra inputs are not permitted"),
        ("[]", "input should be an object"),
        ("{", "invalid json: "),
    ):
        with pytest.raises(ValidationError) as caught:
            Record.model_validate_json(text)
        assert first_fault(caught.value).startswith(told)
