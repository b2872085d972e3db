"""Small files in the user's cache folder."""

import os
from pathlib import Path

from contract.errors import reason
from producer.console import print_note


def keep(file: Path, text: str) -> None:
    """Write a file whole; where that cannot be, say so and go on."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        print_note(f"Not kept for later: {file} ({reason(error)})")
