"""``python -m bench.models``: which models work. It builds the engine of a tiny model of each family of
``bench.families``, compares every tier on a CPU with ``SentenceTransformer.encode()``, and writes the table of
``docs/models.md``."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch

from bench.families import FAMILIES, save_family
from contract.batch import Batch
from contract.compare import cosines
from contract.engine import EngineSpec
from contract.settings import settings
from engine_build.build import build
from engine_build.compare_export import truncate_at
from engine_build.model import longest
from engine_build.outputs import opened_parts
from engine_build.prepare import EngineOptions
from producer.tokenizer import open_tokenizer, tokenize
from worker.runtime.choose import RUNTIMES
from worker.runtime.interface import Engine
from worker.runtime.modules import ModulesEngine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- made by python -m bench.models -->", "<!-- end -->"

_RUNTIME = {"onnxruntime": "onnx", "torch": "torch", "modules": "modules"}
"""A runtime's name → its tier's."""

_SENTENCE = "Every row is accounted for exactly once, even when machines fail. "

ODD_TEXTS = (
    *("", " ", "\n\t\r\n", "a", "A", "z", "7", ".", "é", "字", "🙂", "\u00a0", "\u200b", "\ufeff", "\x00", "\x7f"),
    *("[MASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "<s>", "</s>", "<pad>", "<mask>", "<unk>", "<bos>", "<eos>"),
    *("[CLS] a [SEP]", "a[UNK]b [PAD]", "<|endoftext|>", "<|im_start|>user\nhello<|im_end|>", "<s>a</s></s>b</s>"),
    *("mill", "Mill", "MILL", " leading", "trailing  ", "two  spaces", "tab\tand\nline\r\nends", "a-b_c/d\\e"),
    *("don't e-mail: http://example.org/?q=1&r=2#x", "3.14159 1,000 ½ ② ١٢٣ 一二三", "x" * 300, "\u0301" * 40),
    *("Ünïcödé façade, composed", "U\u0308ni\u0308co\u0308de\u0301 fac\u0327ade, decomposed", "ﬁ ligature ﬀ ＦＵＬＬ"),
    *("日本語のテキスト。", "中文文本，没有空格", "한국어 텍스트", "ข้อความภาษาไทย", "हिन्दी पाठ", "עברית מימין לשמאל"),
    *("نص عربي مع أرقام ١٢٣", "Ελληνικά κείμενο", "Кириллица и ещё", "ქართული ტექსტი", "አማርኛ", "𝔊𝔬𝔱𝔥𝔦𝔠 𝟙𝟚𝟛"),
    *("👩‍👩‍👧 👍🏽 🇩🇪 ☺️", "control \x07\x1b[0m \x08\x0c\x1f", "a\x00b\x00c", "zero\u200bwidth\u200djoined\u2060"),
    *("\u202eright to left\u202c", "\u2028line\u2029paragraph", "\ud7ff\ue000\ufffd\U0010ffff", "{'json': [1, null]}"),
    *("<html><body>&nbsp;</body></html>", "SELECT * FROM t WHERE a = 'b';", "def f(x):\n    return x ** 2\n"),
    *(_SENTENCE, _SENTENCE * 3, _SENTENCE * 9, _SENTENCE * 20, "字" * 700, _SENTENCE * 70),
)  # fmt: skip
"""Of many lengths and scripts; the last is longer than an engine takes."""


@dataclass(frozen=True)
class Found:
    """What was found of one family."""

    spec: EngineSpec
    longest: int
    """Tokens that ``--max-length`` may be at most."""
    cosines: dict[str, float]
    """Each tier's lowest with ``encode()``; also of the model's own modules where the engine does not need them."""


def lowest_cosines(name: str, folder: Path) -> Found:
    """Build the engine of a family's tiny model, and compare all that computes it on a CPU with ``encode()``.

    Args:
        name: of the family.
        folder: for the model and the engine.
    """
    model = save_family(name, folder / "model")
    with _engines(folder / "engines"):
        spec, _ = build(str(model), EngineOptions(), say=lambda line: None, step=lambda text: None)
        reference = getattr(sentence_transformers, spec.opened_by)(str(model), device="cpu")
        truncate_at(reference, spec.max_length)
        batch = _batch(spec)
        expected = opened_parts(reference, None, None).encode(ODD_TEXTS, spec.prefix)
        theirs = [vectors for vectors, length in zip(expected, batch.lengths, strict=True) if length]
        found = {}
        for runtime in RUNTIMES:
            if not runtime.uses_gpu and not runtime.engine_lacks(spec):
                with runtime.load()(spec, 1, 0) as engine:
                    found[_RUNTIME[runtime.name]] = _lowest(engine, batch, theirs)
        found.setdefault("modules", _lowest(ModulesEngine(spec, reference), batch, theirs))
    return Found(spec, longest(getattr(reference[0], "auto_model", None)), found)


@contextmanager
def _engines(folder: Path) -> Iterator[None]:
    """In the ``with`` block engines are built in a folder of their own."""
    before = os.environ.get("EMBEDMILL_ENGINES")
    os.environ["EMBEDMILL_ENGINES"] = str(folder)
    settings.cache_clear()
    try:
        yield
    finally:
        os.environ.pop("EMBEDMILL_ENGINES")
        if before is not None:
            os.environ["EMBEDMILL_ENGINES"] = before
        settings.cache_clear()


def _batch(spec: EngineSpec) -> Batch:
    tokens, n_tokens = tokenize(ODD_TEXTS, open_tokenizer(spec), spec.prefix)
    return Batch("models", 0, spec.fingerprint, np.arange(len(tokens)), tokens, n_tokens)


def _lowest(engine: Engine, batch: Batch, expected: Sequence[npt.NDArray[np.float32]]) -> float:
    found = engine.infer(batch).rows.split(engine.spec.hidden)
    return min(float(cosines(ours, theirs).min()) for ours, theirs in zip(found, expected, strict=True))


def table() -> str:
    """The page's table, in Markdown."""
    lines = [
        "| family | computed on a CPU by | on a GPU by | longest row | lowest cosine | such as |",
        "|---|---|---|---:|---:|---|",
    ]
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            found = lowest_cosines(name, Path(folder))
        spec, known = found.spec, ", ".join(f"`{one}`" for one in family.known) or "–"
        lowest = min(found.cosines[tier] for tier in spec.tiers)
        lines.append(f"| {name} | {CPU[spec.tiers[0]]} | {_gpu(spec)} | {found.longest:,} | {lowest:.7f} | {known} |")
    return "\n".join(lines)


CPU = {"onnx": "`onnxruntime`", "torch": "`torch`", "modules": "`modules`"}


def _gpu(spec: EngineSpec) -> str:
    return ", ".join("`tensorrt`" if tier == "onnx" else f"`{tier}`" for tier in spec.tiers)


def families_on(page: str) -> list[str]:
    """The families that a page's table names."""
    part = page.split(BEGIN)[1].split(END)[0]
    return [match[1] for match in re.finditer(r"^\| ([^|]+?) \|", part, re.MULTILINE) if match[1] != "family"]


@click.command()
def main() -> None:
    """Write the table of docs/models.md."""
    torch.set_num_threads(1)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main(prog_name="python -m bench.models")
