"""What each step of a stage took, for its facts."""

import time


class Clock:
    """Seconds between calls, each under the name of the step that has just ended."""

    def __init__(self):
        self.seconds, self.last = {}, time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{step}"], self.last = round(now - self.last, 3), now
