"""embedmill: verified embeddings of a text dataset.

>>> import embedmill
>>> job = embedmill.embed("reviews.csv", model="all-MiniLM-L6-v2", text="{title}\\n{body}")
>>> job.vectors()  # a pyarrow.Table: row i is row i of the dataset
>>> job.verdict.passed
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contract.errors import UserError
    from embedmill.api import Embedded, NotVerified, embed
    from producer.estimate import Estimate

_ELSEWHERE = {"UserError": "contract.errors", "Estimate": "producer.estimate"}

__all__ = ["Embedded", "Estimate", "NotVerified", "UserError", "embed"]


def __getattr__(name: str) -> Any:
    """What ``__all__`` names, and ``__version__``: imported when it is asked for, so that the command starts at
    once."""
    if name == "__version__":
        from importlib.metadata import version

        return version("embedmill")
    if name not in __all__:
        raise AttributeError(f"module 'embedmill' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ELSEWHERE.get(name, "embedmill.api")), name)
