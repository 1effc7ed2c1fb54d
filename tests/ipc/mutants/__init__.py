"""The core, broken on purpose: each a mistake that is easy to make, and where it has to show.

A test that cannot tell these from the real thing proves nothing. Some escaped at first, because a
repair hid what an operation did wrong: the reason why `freeze` never repairs.
"""

from tests.ipc.mutants.ends import ENDS
from tests.ipc.mutants.handover import HANDOVER
from tests.ipc.mutants.mutant import Mutant
from tests.ipc.mutants.senders import SENDERS
from tests.ipc.mutants.times import TIMES
from tests.ipc.mutants.waiting import WAITING

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = (*HANDOVER, *ENDS, *SENDERS, *TIMES, *WAITING)
