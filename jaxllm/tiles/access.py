"""How a task uses a tile: what it may see, what it changes, and so whom it must wait for."""

import enum


class Mode(enum.Enum):
    """The access modes of StarPU, from which the order of tasks follows.

    A task waits for: R, the last writers; W and RW, the readers since, or the last writers if there
    are none. COMMUTE adds to a tile: tasks that add to it one after another may do so in any order,
    one at a time. REDUX adds to a copy of the worker's own, which a later task merges. SCRATCH is
    memory that a task needs while it runs, and nobody else sees.
    """

    R = "R"
    W = "W"
    RW = "RW"
    COMMUTE = "RW|COMMUTE"
    REDUX = "REDUX"
    SCRATCH = "SCRATCH"

    @property
    def adds(self) -> bool:
        """Whether the task gives what is to be added, and does not see the sum."""
        return self in (Mode.COMMUTE, Mode.REDUX)
