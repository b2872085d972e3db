"""Which target ``--to`` names."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from contract.errors import UserError
from embedmill.export.source import Source
from embedmill.export.target import Target

Opened = AbstractContextManager[Target]


def opener(to: str, table: str | None) -> Callable[[Source], Opened]:
    """What opens the target that ``--to`` names; its client is imported here.

    Args:
        to: ``lance:PATH``, ``faiss:PATH`` or ``postgresql://…``.
        table: of PostgreSQL; None for the job's own.

    Raises:
        UserError: it names none, or its client is not installed.
    """
    kind, _, path = to.partition(":")
    if kind in ("postgresql", "postgres") and path.startswith("//"):
        try:
            from embedmill.export.postgresql import postgresql
        except ImportError:
            raise _missing("postgresql://…", "psycopg and pgvector", "pgvector") from None
        return lambda source: postgresql(to, table, source)
    if table:
        raise UserError("--table is for postgresql://…", f"--to begins with {kind}:", "leave it out")
    if kind == "lance" and path:
        try:
            from embedmill.export.lance_dataset import lance_dataset
        except ImportError:
            raise _missing("lance:…", "pylance", "lance") from None
        return lambda source: lance_dataset(path, source)
    if kind == "faiss" and path:
        try:
            from embedmill.export.faiss_index import faiss_index
        except ImportError:
            raise _missing("faiss:…", "faiss-cpu", "faiss") from None
        return lambda source: faiss_index(path, source)
    # Not the whole of it: another address may have a password.
    raise UserError(
        f"--to begins with {kind!r}", "expected lance:FOLDER, faiss:FOLDER or postgresql://USER@HOST/DATABASE"
    )


def _missing(what: str, package: str, extra: str) -> UserError:
    """The error for a client that is not installed."""
    return UserError(
        f"--to {what} needs {package}", "it is not installed", f"install it: pip install 'embedmill[{extra}]'"
    )
