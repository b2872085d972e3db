"""Records that are kept for later as small files in the user's cache folder."""

import os
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from contract.errors import reason
from producer.console import print_note


class CachedRecord(BaseModel):
    """Base of such a record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def write(self, file: Path) -> None:
        """Write the record so that a reader sees all of it; where it cannot be written, print that and go on."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_name(f".{file.name}.{os.getpid()}")
            draft.write_text(self.model_dump_json(), encoding="utf-8")
            draft.replace(file)
        except OSError as error:
            print_note(f"Not kept for later: {file} ({reason(error)})")

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """The record in a file; None where there is none, or one of another version."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            return None
