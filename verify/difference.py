"""What a comparison of two jobs has found: the record that terminal, page and JSON read."""

from pydantic import BaseModel, ConfigDict, computed_field

from contract.words import count


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Compared(_Record):
    """One of the two jobs, for people."""

    job: str
    folder: str
    engine: str
    model: str
    fingerprint: str
    form: str
    elements: int
    """Of a vector."""
    vector_bytes: int
    """Of one vector."""
    bytes: int
    """Of its shards, with all columns."""


class Cosines(_Record):
    """Between the two vectors of each row that has two."""

    lowest: float
    percent_1: float
    """One row in a hundred is at this or below."""
    median: float
    mean: float
    histogram: tuple[tuple[float, int], ...]
    """Distance, 1 less the cosine, where a bin begins → rows; the last has none."""


class Neighbour(_Record):
    """A row."""

    row: int
    text: str


class DifferentRow(_Record):
    """A sampled row, and its neighbours."""

    row: int
    text: str
    kept: int
    """How many of its neighbours are the same."""
    cosine: float | None
    """None where the vectors have other lengths."""
    lost: Neighbour | None
    """The nearest one in the first job that is not among the nearest in the second."""
    gained: Neighbour | None
    """The nearest one in the second job that is not among the nearest in the first."""


class Difference(_Record):
    """How far the second job is from the first."""

    left: Compared
    right: Compared
    when: str
    """UTC, ISO 8601."""
    rows: int
    compared: int
    """Rows that have a vector in both."""
    only_left: int
    only_right: int
    sample: int
    """Rows whose neighbours were searched for."""
    seed: int
    neighbours: int
    """Of each."""
    overlap: float
    """The share of them that is the same in both, 0 to 1."""
    overlap_error: float
    """In 95 of 100 samples the true share is not farther away; 0 where all rows were taken."""
    kept: tuple[int, ...]
    """How many sampled rows keep 0, 1, … all of their neighbours."""
    first_kept: float
    """The share of sampled rows whose nearest one is the same."""
    cosines: Cosines | None
    """None where the vectors have other lengths."""
    least: float
    """Overlap that was asked for."""
    worst: tuple[DifferentRow, ...]
    """Of the sampled rows those that keep the fewest neighbours; of equals the one with the lowest cosine first."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether as many neighbours are kept as was asked for."""
        return self.overlap >= self.least

    @property
    def answer(self) -> str:
        """In a sentence."""
        error = f" ± {100 * self.overlap_error:.1f} %" if self.overlap_error else ""
        asked = f"{100 * self.least:g} % {'or more ' if self.passed else ''}were asked for"
        return (
            f"{100 * self.overlap:.1f} %{error} of each row's nearest {self.neighbours} are the same ({asked}); "
            f"a vector has {count(self.right.vector_bytes, 'byte')} instead of {self.left.vector_bytes:,}"
        )
