"""A dataset on the Hub: downloaded, or left there and read as ``ParquetTable``s."""

from collections.abc import Mapping
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from contract.errors import UserError, reason
from producer.parquet_table import ParquetTable


def open_hub(
    dataset: str, config: str | None, revision: str | None, *, stream: bool
) -> tuple[Mapping[str, Any], str, str]:
    """Open a dataset of the Hub.

    Args:
        dataset: its id; a name of old, such as ``imdb``, is followed to where it leads.
        config: which configuration; None for the default one.
        revision: branch, tag or commit; None for the latest.
        stream: leave the rows where they are.

    Returns:
        Split → ``datasets.Dataset``, or with ``stream`` → ``ParquetTable``; the dataset's id, and its commit.

    Raises:
        UserError: it cannot be had.
    """
    try:
        dataset, revision = _found(dataset, revision)
        builder = datasets.load_dataset_builder(dataset, config, revision=revision)
        if stream:
            return _tables(builder, dataset), dataset, str(builder.hash)
        builder.download_and_prepare()
        return dict(builder.as_dataset()), dataset, str(builder.hash)
    except UserError:
        raise
    except RevisionNotFoundError:
        raise UserError(
            f"{dataset} has no revision {revision}", "expected a branch, a tag or a commit", "see --revision"
        ) from None
    except RepositoryNotFoundError as error:
        raise UserError(
            f"no dataset {dataset} on the Hub that this user may see ({reason(error)})",
            "expected a Hub id such as imdb, a file, or a folder",
            "a private dataset takes a token: export HF_TOKEN=hf_…, or: hf auth login",
        ) from None
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, HfHubHTTPError) as error:
        raise UserError(
            f"no dataset {dataset}, or no network ({reason(error)})",
            "expected a Hub id such as imdb, a file, or a folder",
            "without network: python -m producer --dataset /path/to/file.jsonl",
        ) from None
    except Exception as error:  # an unknown config is a ValueError that lists the known ones
        raise UserError(
            f"{dataset} cannot be read ({reason(error.__cause__ or error)})", hint="see --config and --split"
        ) from None


def _found(dataset: str, revision: str | None) -> tuple[str, str | None]:
    """The id that a dataset has now, and its commit. The ``datasets`` library takes no name of old by itself."""
    try:
        info = HfApi().dataset_info(dataset, revision=revision)
    except HfHubHTTPError:
        raise
    except Exception:  # without a network the library's own cache may have it
        return dataset, revision
    return info.id, info.sha


def _tables(builder: datasets.DatasetBuilder, dataset: str) -> dict[str, ParquetTable]:
    # Filters in a dataset's own settings would make its rows others than its files'.
    if not isinstance(builder, Parquet) or builder.config.filters is not None:
        raise UserError(
            f"{dataset} cannot be streamed: it is no set of Parquet files",
            "rows are read where they are, and only Parquet says where that is",
            "leave out --stream, or try --revision refs/convert/parquet, where the Hub keeps datasets as Parquet",
        )
    return {str(split): ParquetTable(files) for split, files in builder.config.data_files.items()}
