"""``python -m worker.probe ENGINE``: opens an engine and closes it, and says in one line why it cannot be opened."""

import sys

from contract.engines import load_engine
from contract.errors import UserError
from worker.runtime.choose import open_engine
from worker.runtime.interface import EngineDead

try:
    with open_engine(load_engine(sys.argv[1]), threads=1):
        pass
except (UserError, EngineDead) as error:
    sys.exit(f"Error: {error}")
