"""Where jobs lie: on a disk, or in an object store.

``interface.py`` says what a ``Location`` can do; ``disk.py`` and ``bucket.py`` are the two implementations. Another
object store is another scheme in ``bucket.py``, another kind of storage another module and a line in ``location``.
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator

from contract.store.bucket import BucketPath
from contract.store.disk import DiskPath
from contract.store.interface import Entry, Location, StoreError, StoreRefuses

__all__ = ["Entry", "Location", "LocationField", "StoreError", "StoreRefuses", "location"]

_NEARLY_URI = re.compile(r"(s3|gs):|[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
"""A slash too few: no folder of such a name is meant."""


def location(given: str | Path | Location) -> Location:
    """A path, or an object store's URI, as a user writes it.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str) and "://" in given:
        return BucketPath(given)
    if isinstance(given, str) and _NEARLY_URI.match(given):
        raise ValueError(f"expected s3://bucket/prefix, gs://bucket/prefix or a path, found {given}")
    if isinstance(given, BucketPath):
        return given
    if not isinstance(given, str | Path) or "\0" in str(given):
        raise ValueError("expected a path, without a NUL in it")
    return DiskPath(given)


LocationField = Annotated[Location, PlainValidator(location), PlainSerializer(str)]
"""A ``Location`` in a pydantic model; in JSON, its text."""
