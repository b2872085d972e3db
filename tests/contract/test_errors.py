import click
from click.testing import CliRunner

from contract.errors import UserError


def test_an_error_is_one_line_of_found_expected_and_mend() -> None:
    @click.command()
    def fail() -> None:
        raise UserError("no engine", "there must be one", "build it: python -m engine_build")

    result = CliRunner().invoke(fail)
    assert result.exit_code == 1
    assert result.output == "Error: no engine; there must be one; build it: python -m engine_build\n"


def test_what_an_error_leaves_out_leaves_no_gap() -> None:
    assert UserError("found", hint="hint").format_message() == "found; hint"
