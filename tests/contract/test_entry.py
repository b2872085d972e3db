"""How a command begins."""

import gc

from contract.entry import uncollected


def test_what_is_imported_is_not_looked_through_for_garbage_and_what_comes_later_is() -> None:
    with uncollected():
        assert not gc.isenabled()
        imported = [["held by a module"]]
    later = [["made by a command"]]
    assert gc.isenabled()
    seen = {id(one) for one in gc.get_objects()}
    assert (id(imported) in seen, id(later) in seen) == (False, True)
