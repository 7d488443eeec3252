"""Which picture of a unit ends the process that encodes it: halves are tried until one is left. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from calotype.cache.receipts import Bad
from calotype.cache.units import Sample, Unit
from calotype.errors import CalotypeError

TRIES = 3  # of a unit, before it is looked into
MOST = 3  # pictures of one unit that are left out so
REASON = "the process that encodes it is killed each time; it may take too much memory, or break what decodes it."


@dataclass
class Patient:
    """A unit that is to be made, whatever becomes of those who make it.

    The unit keeps its id and its samples: pictures that are found so are bad in its receipt, as others are.

    Attributes:
        unit: with the pictures that were found.
        deaths: of its workers, since it was last looked into.
    """

    unit: Unit
    deaths: int = 0
    _in_vain: bool = False
    _suspects: tuple[Sample, ...] = ()

    @property
    def suspicious(self) -> bool:
        """Whether workers have died of it."""
        return bool(self.deaths or self._suspects)

    @property
    def tried(self) -> bool:
        """Whether only a part of it is to be tried next."""
        return bool(self._suspects)

    @property
    def next(self) -> Unit:
        """What a worker is to be given."""
        return replace(self.unit, samples=self._half, bad=()) if self._suspects else self.unit

    def died(self, why: str) -> None:
        """A worker has ended over `next`.

        Raises:
            CalotypeError: nothing more can be done.
        """
        if not self._suspects:
            self.deaths += 1
            if self.deaths >= TRIES:
                found = {(one.name, one.key) for one in self.unit.bad}
                if self._in_vain or len(found) >= MOST:
                    raise CalotypeError(self._told(why))
                self._suspects = tuple(one for one in self.unit.samples if (one.name, one.key.hex()) not in found)
        elif len(self._suspects) > 1:
            self._suspects = self._half
        else:
            (one,) = self._suspects
            self.unit = replace(self.unit, bad=(*self.unit.bad, Bad(one.name, one.key.hex(), REASON)))
            self._suspects, self.deaths = (), TRIES - 1

    def survived(self) -> None:
        """A worker was given `next`, a part, and has not ended."""
        if len(self._suspects) > 1:
            self._suspects = self._suspects[len(self._half) :]
        else:
            self._suspects, self.deaths, self._in_vain = (), 0, True

    @property
    def _half(self) -> tuple[Sample, ...]:
        return self._suspects[: (len(self._suspects) + 1) // 2]

    def _told(self, why: str) -> str:
        count, names = len(self.unit.samples), [one.name for one in self.unit.bad]
        left = f", also without {', '.join(names)}" if names else ", and none of them does alone"
        return (
            f"Unit {self.unit.id} of {count:,} pictures, from {self.unit.samples[0].name} to "
            f"{self.unit.samples[-1].name}, ends each process that encodes it{left} ({why}); look at the memory and "
            "the logs of the nodes. What was made is kept."
        )
