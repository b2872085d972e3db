"""``python -m bench.screen``: what a terminal shows while ``embedmill embed`` runs, as a picture for the documentation.

The command runs in a terminal of its own; its screen is kept at each frame, and the one in which half of the sample is
verified becomes an SVG.
"""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from io import StringIO
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from contract.errors import UserError

_WIDTH, _HEIGHT = 110, 50
_CONTROL = re.compile(r"\x1b\[(?P<number>\d*)(?P<letter>[AK])|\x1b\[\?\d+[hl]|\r|\n|[^\x1b\r\n]+|\x1b\[[\d;]*m")
"""What Rich writes: cursor up, erase a line, hide the cursor, colours, text."""
_MOMENT = re.compile(r"verification\W.*?(\d+)/(\d+)")

_ROOT = Path(__file__).resolve().parent.parent


def screens(told: str) -> list[str]:
    """The screen before anything is erased and after each line, colours kept.

    Args:
        told: all that a command wrote.
    """
    lines, row, found = [""], 0, []
    for match in _CONTROL.finditer(told):
        text = match[0]
        if match["letter"] == "A":
            row = max(0, row - int(match["number"] or 1))
        elif match["letter"] == "K":
            if lines[row]:
                found.append("\n".join(lines))
            lines[row] = ""
        elif text == "\n":
            found.append("\n".join(lines))
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif text != "\r" and not text.startswith("\x1b[?"):
            lines[row] += text
    return [*found, "\n".join(lines)]


def told_by(command: list[str]) -> str:
    """All that a command writes into a terminal.

    Raises:
        UserError: it failed.
    """
    pid, terminal = pty.fork()
    if not pid:
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _HEIGHT, _WIDTH, 0, 0))
    told = b""
    try:
        while some := os.read(terminal, 65536):
            told += some
    except OSError:  # Linux's way to say that the command has closed the terminal
        pass
    if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise UserError(f"{' '.join(command)} ended with status {status}: {told.decode(errors='replace')[-1000:]}")
    return told.decode(errors="replace")


def picture(every: list[str]) -> str:
    """The screen in which half of the sample is verified.

    Raises:
        UserError: there is none.
    """
    for screen in every:
        match = _MOMENT.search(Text.from_ansi(screen).plain)
        if match and 2 * int(match[1]) >= int(match[2]):
            return screen
    raise UserError("no screen shows that half of the sample is verified")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="WHAT EMBED TAKES")
@click.option("--svg", type=click.Path(path_type=Path), default=_ROOT / "docs" / "images" / "embed.svg")
def main(words: tuple[str, ...], svg: Path) -> None:
    """Run embedmill embed and write a picture of its screen."""
    screen = picture(screens(told_by([sys.executable, "-P", "-m", "embedmill", "embed", *words])))
    console = Console(record=True, width=_WIDTH, file=StringIO(), force_terminal=True)
    console.print(Text(f"$ embedmill embed {' '.join(words)}"))
    console.print(Text.from_ansi(screen.rstrip()))
    drawn = console.export_svg(title="embedmill")
    svg.write_text(re.sub(r"@font-face {.*?}\s*", "", drawn, flags=re.DOTALL), encoding="utf-8")  # they are elsewhere


if __name__ == "__main__":
    main()
