"""The ``datasets`` library, imported only where it is needed: that takes as long as reading 300 MB of csv."""

import logging
import os
import sys
from pathlib import Path
from types import ModuleType

from contract.entry import importing


def library() -> ModuleType:
    """``datasets``, told to be quiet: what it has to say comes with its exceptions, in one line."""
    with importing():
        import datasets
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a README beside the data need be no card
    return datasets


def cache_folder() -> Path:
    """Where the library has its cache: ``HF_DATASETS_CACHE``, or what it makes of the other variables."""
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    return Path(os.environ.get("HF_DATASETS_CACHE", os.path.join(os.path.expanduser(home), "datasets")))
