"""What the commands share: kinds of option, the options of several commands, and the consoles."""

from typing import Literal

import click
from rich.console import Console

from contract.engine import EngineSpec
from contract.engines import load_engine
from contract.plan import BatchShape

STDOUT, STDERR = Console(markup=False), Console(stderr=True, markup=False)

ENGINE = click.option("--engine", help="[default: EMBEDMILL_ENGINE, or the one built last]")
GPU = click.option("--gpu", type=click.IntRange(min=0), default=0, show_default=True, help="The GPU's number.")


def engine_to_add_to(name: str | None) -> EngineSpec:
    """The engine of this name, or the default one; a line for each entry of its record that cannot be used.

    Raises:
        UserError: there is none, or its record cannot be read.
    """
    spec = load_engine(name)
    for line in spec.unusable:
        STDERR.print(line, highlight=False, soft_wrap=True)
    return spec


class ShapeType(click.ParamType[BatchShape]):
    """``ROWSxLENGTH``, both numbers."""

    name = "ROWSxLENGTH"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> BatchShape:
        try:
            return BatchShape.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class LengthType(click.ParamType["int | Literal['model']"]):
    """A number of tokens, or ``model``."""

    name = "TOKENS|model"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | Literal["model"]:
        if value == "model":
            return "model"
        try:
            return int(str(value))
        except ValueError:
            self.fail(f"{value!r}: expected a number of tokens, or model", param, ctx)
