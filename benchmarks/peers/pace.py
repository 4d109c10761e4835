"""Which peers are left out where the time does not last for them."""

import time

from benchmarks.peers.list import PEERS
from benchmarks.shared.report import Case
from benchmarks.shared.shapes import MODELS

SLOWEST_STEP_S = 10.0
COMPILING = 0.5


class Pace:
    """What is known of the time, so as not to begin what would last for minutes.

    Args:
        minutes: How long all may take; when `COMPILING` of that is over, nothing more is compiled.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes, self.begin = minutes, time.monotonic()
        self.least: dict[tuple[str, str], tuple[float, str]] = {}

    def note(self, name: str, case: Case, seconds: float) -> None:
        """Remembers a step; the least time per element is the one that does not count what a tensor costs."""
        per_element = seconds / MODELS[case[0]].elements
        self.least[name, case[1]] = min(self.least.get((name, case[1]), (per_element, case[0])), (per_element, case[0]))

    def why_not(self, name: str, case: Case) -> str | None:
        """Why a peer is not measured on a model, if it would take too long there."""
        per_element, model = self.least.get((name, case[1]), (0.0, ""))
        expected = per_element * MODELS[case[0]].elements
        if expected > SLOWEST_STEP_S:
            return f"left out for time: by its time on {model}, a step takes about {expected:.0f} s"
        if PEERS[name].compiles and time.monotonic() - self.begin > COMPILING * 60 * self.minutes:
            return f"left out for time: too little of {self.minutes:g} minutes was left to compile it (--minutes)"
        return None
