from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from contract.engine import EngineSpec
from contract.form import VectorForm
from contract.job import Job
from contract.verdict import Check, Verdict
from producer.card import Ready, card_of, pushed_job
from producer.progress import ShardTotals
from tests.contract.samples import a_batch, a_job, a_verdict, engine_spec, figures, info_for


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return a_job(
        tmp_path,
        dataset="stanfordnlp/imdb",
        config="plain_text",
        revision="e6281661ce1c48d9",
        rows=25_000,
        prefix="a|b: ",
    )


def spec(**changes: object) -> EngineSpec:
    fields: dict[str, object] = {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "revision": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
        "hidden": 384,
    }
    return engine_spec(**(fields | changes))


def verdict(job: Job) -> Verdict:
    numbers = {"mse": 1.6e-15, "relative_mse": 6e-13, "min_cosine": 1}
    nothing = dict.fromkeys(("mse", "relative_mse", "min_cosine"))
    return a_verdict(
        job,
        compared=256,
        checks=(Check(name="rows", passed=True, detail="in | out"),),
        strata=(figures(tokens="1-32", rows=43, **numbers),),
        total=figures(rows=256, non_finite=3, **nothing),
    )


def card(job: Job, engine: EngineSpec | None = None, **changes: Any) -> str:
    runtimes = frozenset({"b (fp16)", "a (fp32)"})
    totals = ShardTotals(rows=job.rows, truncated=1_234, without_text=5, failed=6, runtimes=runtimes)
    options: dict[str, Any] = {"verdict": verdict(job), "doubt": "", "repo": "user/vectors", "kept": {}} | changes
    ready = Ready(job, totals, options["verdict"], options["doubt"])
    return card_of(ready, engine or spec(), options["repo"], options["kept"])


def front_matter(text: str) -> dict[str, Any]:
    """As the Hub's own client reads it."""
    found: dict[str, Any] = DatasetCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    return found


def test_the_front_matter_is_one_that_the_hub_takes(job: Job) -> None:
    found = front_matter(card(job))
    assert found["source_datasets"] == ["stanfordnlp/imdb"]
    assert found["size_categories"] == ["10K<n<100K"]
    (config,) = found["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert pushed_job(found) == job.id
    assert (found["embedmill"]["pooling"], found["embedmill"]["normalize"]) == ("mean", True)


def test_front_matter_of_a_person_stays_and_ours_is_renewed(job: Job) -> None:
    kept = {"license": "mit", "tags": ["mine"], "size_categories": ["n<1K"]}
    found = front_matter(card(job, kept=kept))
    assert (found["license"], found["size_categories"]) == ("mit", ["10K<n<100K"])


def test_a_card_says_what_the_vectors_are(job: Job) -> None:
    text = card(job)
    for part in (
        "[stanfordnlp/imdb](https://huggingface.co/datasets/stanfordnlp/imdb), configuration `plain_text`",
        "split `train`, revision `e6281661ce1c`: 25,000 rows, in the dataset's order",
        "[sentence-transformers/all-MiniLM-L6-v2](https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2)",
        'datasets.load_dataset("user/vectors", split="train")',
        "| pooling | mean |",
        "| normalization | norm 1 |",
        "| longest row | 512 tokens; what is longer is truncated |",
        "| computed by | a (fp32), b (fp16) |",
        "| truncated | 1,234, which have more than 512 tokens |",
        "| without a text (null, empty or only white space) | 5 |",
        "| with an error in place of a vector | 6 |",
        "| 1-32 | 43 | 1.6e-15 | 6.0e-13 | 1.0000000 | – | 0 |",
        "| all | 256 | – | – | – | – | 3 |",
        "Verified on 2026-11-23",
    ):
        assert part in text


def test_a_pipe_does_not_break_a_table(job: Job) -> None:
    assert r"`'a\|b: '`" in card(job)
    assert r"| rows | pass | in \| out |" in card(job)


def test_a_local_dataset_and_model_are_named_without_their_place(tmp_path: Path) -> None:
    text = card(a_job(tmp_path, limit=7), spec(model="/home/somebody/models/tiny", revision=None))
    assert "/home/somebody" not in text
    assert "/data/" not in text
    assert "of `reviews.csv`, split" in text
    assert "the first 7" in text
    assert "source_datasets" not in front_matter(text)


def test_token_level_output_and_no_normalization_are_said(job: Job) -> None:
    text = card(job, spec(pooling="tokens", normalize=False))
    assert "| pooling | none: a vector for each token |" in text
    assert "| normalization | none |" in text


def test_a_sparse_vectors_columns_are_said(tmp_path: Path) -> None:
    text = card(a_job(tmp_path, form=VectorForm(dtype="float16")), spec(pooling="sparse", hidden=30_522))
    assert "| pooling | none: a sparse vector |" in text
    assert "| `indices` | which of the vector's 30,522 elements are not zero, ascending; null for a row" in text
    assert "| `weights` | halffloat, the values of these elements; null for a row" in text
    assert "`embedding`" not in text


def test_a_card_names_what_computed_the_vectors_and_how() -> None:
    info = info_for(a_batch(), runtime="sentence-transformers 6.2.0, torch 2.13.0")
    assert info.computed_by == "sentence-transformers 6.2.0, torch 2.13.0 (the model's own modules, fp32)"
    assert info_for(a_batch(), runtime="torch 2.13.0").computed_by == "torch 2.13.0 (packed rows in PyTorch, fp32)"


def test_the_form_of_the_vectors_kept_columns_and_windows_are_said(tmp_path: Path) -> None:
    form = VectorForm(dtype="int8", dimensions=2, ranges=((-1.0, -0.5), (1.0, 0.5)))
    text = card(a_job(tmp_path, form=form, columns=("label", "url"), overlap=64))
    for part in (
        "| kept as | int8, the first 2 dimensions, ranges in this card's front matter |",
        "| longest row | 512 tokens; what is longer is cut into windows that share 64 tokens, and has the mean of",
        "| `embedding` | int8; null",
        "| `url` | as in the source dataset |",
    ):
        assert part in text
    assert front_matter(text)["embedmill"]["ranges"] == [[-1.0, -0.5], [1.0, 0.5]]
    assert "| kept as | float32 |" in card(a_job(tmp_path))


def test_a_card_of_an_unverified_job_says_so(job: Job) -> None:
    text = card(job, verdict=None, doubt="it has not been verified")
    assert "**Not verified**: it has not been verified." in text
    assert "Verified on" not in text


@pytest.mark.parametrize(
    ("rows", "size"), [(999, "n<1K"), (1_000, "1K<n<10K"), (10_000_000, "10M<n<100M"), (10**12, "n>1T")]
)
def test_the_hubs_names_for_sizes(rows: int, size: str, tmp_path: Path) -> None:
    assert front_matter(card(a_job(tmp_path, rows=rows)))["size_categories"] == [size]


@pytest.mark.parametrize("found", [{}, {"license": "mit"}, {"embedmill": "yes"}])
def test_a_card_of_another_kind_names_no_job(found: dict[str, Any]) -> None:
    assert pushed_job(found) is None
