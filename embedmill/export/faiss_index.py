"""A FAISS index: IVF with the row ids, its lists in a file beside it.

index.faiss         what faiss.read_index opens; there once everything is in
vectors.ivfdata     the lists, which FAISS maps into memory and does not load
columns/            kept columns with row_id, one Parquet file for each shard
job.txt             what the folder was made from
trained.faiss       the empty index   } until
lists/              one file a shard  } index.faiss is there
"""

import contextlib
import ctypes
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from contract.errors import UserError, first_line
from contract.words import count
from embedmill.export.source import Floats, Rows, Source
from embedmill.export.target import check_owner, ordered, owner, partitions
from verify.neighbours import unit

_TRAINED_BY = 64
"""Rows for each list that its centre is found from, at most."""


class FaissTarget:
    """See ``Target``. FAISS has no cosine: vectors are brought to norm 1, and compared by inner product.

    Args:
        folder: made for this job.
        source: the job.
    """

    setting = "nprobe"
    settings: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)

    def __init__(self, folder: Path, source: Source) -> None:
        self._folder, self._source = folder, source
        self._index: Any = None
        if (folder / "index.faiss").exists():
            with _silent():
                self._index = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_ONDISK_SAME_DIR)

    def __str__(self) -> str:
        return f"faiss:{self._folder}"

    def present(self) -> Mapping[int, int]:
        there: Counter[int] = Counter()
        if self._index is not None:
            for ids, _ in self._lists():
                there.update((ids // self._source.job.batch_rows).tolist())
            return there
        for file in (self._folder / "lists").glob("[0-9]*.lists"):
            there[int(file.stem)] = self._read(file).compute_ntotal()
        return there

    def add(self, rows: Rows) -> None:
        index = self._trained()
        index.add_with_ids(unit(rows.vectors), rows.ids)
        name = f"{rows.batch:05d}"
        if self._source.columns.names:
            table = rows.kept.add_column(0, "row_id", pa.array(rows.ids))
            _whole(self._folder / "columns" / f"{name}.parquet", lambda file: pq.write_table(table, file))
        lists = self._folder / "lists" / f"{name}.lists"
        _whole(lists, lambda file: faiss.write_InvertedLists(index.invlists, faiss.FileIOWriter(file)))

    def build_index(self, say: Callable[[str], None]) -> str:
        if self._index is None:
            self._index = self._merged()
        shutil.rmtree(self._folder / "lists", ignore_errors=True)
        (self._folder / "trained.faiss").unlink(missing_ok=True)
        return f"IndexIVFFlat, {count(self._index.nlist, 'list')}"

    def _merged(self) -> Any:
        """The lists of all shards become one file; of each no more is in memory than is copied."""
        index, data = self._trained(), self._folder / "vectors.ivfdata"
        data.unlink(missing_ok=True)  # of a run that was interrupted
        parts = [self._read(file) for file in sorted((self._folder / "lists").glob("[0-9]*.lists"))]
        pointers = faiss.InvertedListsPtrVector()
        for part in parts:
            pointers.push_back(part)
        lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(data.absolute()))
        with _silent():
            index.ntotal = lists.merge_from_multiple(pointers.data(), pointers.size())
        index.replace_invlists(lists, True)
        lists.this.disown()  # the index frees it
        _sync(data)
        _whole(self._folder / "index.faiss", lambda file: faiss.write_index(index, file))
        return index

    def stored(self, vectors: Floats) -> Floats:
        return unit(vectors)

    def vectors(self, ids: npt.NDArray[np.int64]) -> Floats:
        found, vectors = [], []
        for there, codes in self._lists():
            wanted = np.isin(there, ids)
            found.append(there[wanted])
            vectors.append(codes[wanted])
        return ordered(ids, np.concatenate(found), np.concatenate(vectors))

    def nearest(self, queries: Floats, most: int, setting: int) -> npt.NDArray[np.int64]:
        search = faiss.SearchParametersIVF(nprobe=setting)
        found: npt.NDArray[np.int64] = self._index.search(unit(queries), most, params=search)[1]
        return found

    @property
    def usage(self) -> str:
        return f'faiss.read_index("{self._folder / "index.faiss"}", faiss.IO_FLAG_ONDISK_SAME_DIR)'

    def _lists(self) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
        """The ids ``[m]`` and the vectors ``[m, elements]`` of each list, where FAISS has mapped them."""
        lists, elements = self._index.invlists, self._source.elements
        for number in range(self._index.nlist):
            if size := lists.list_size(number):
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * elements * 4)
                yield ids, codes.view(np.float32).reshape(size, elements)

    def _trained(self) -> Any:
        """The empty index, its lists' centres found from a sample of the job."""
        file = self._folder / "trained.faiss"
        if not file.exists():
            elements, lists = self._source.elements, partitions(self._source.total)
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(elements), elements, lists, faiss.METRIC_INNER_PRODUCT)
            index.cp.max_points_per_centroid = _TRAINED_BY
            index.train(unit(self._source.sample(_TRAINED_BY * lists)[1]))
            _whole(file, lambda path: faiss.write_index(index, path))
        return faiss.read_index(str(file))

    def _read(self, file: Path) -> Any:
        """A shard's lists, mapped into memory."""
        return faiss.read_InvertedLists(faiss.FileIOReader(str(file)), faiss.IO_FLAG_MMAP)


def _whole(file: Path, write: Callable[[str], object]) -> None:
    """Write a file that is there in full or not at all."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    write(str(unfinished))
    _sync(unfinished)
    os.replace(unfinished, file)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what C++ prints on stdout in the ``with`` block: FAISS tells which files it makes and opens."""
    library, stdout = ctypes.CDLL(None), os.dup(1)
    library.fflush(None)  # what was printed before
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        library.fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nothing)


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


@contextlib.contextmanager
def faiss_index(path: str, source: Source) -> Iterator[FaissTarget]:
    """A folder with a FAISS index, made if it is not there.

    Args:
        path: the folder.
        source: what is exported.

    Raises:
        UserError: it is another's, or FAISS or the disk fails.
    """
    folder = Path(path)
    note = folder / "job.txt"
    try:
        if folder.exists() and (not folder.is_dir() or (not note.exists() and any(folder.iterdir()))):
            check_owner(path, None, source)
        for name in ("lists", *(["columns"] if source.columns.names else [])):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if note.exists():
            check_owner(path, note.read_text(encoding="utf-8").strip(), source)
        else:
            _whole(note, lambda file: Path(file).write_text(f"{owner(source)}\n", encoding="utf-8"))
        yield FaissTarget(folder, source)
    except (OSError, RuntimeError) as error:
        raise UserError(f"FAISS cannot write or read {path} ({first_line(error)})") from None
