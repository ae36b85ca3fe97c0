"""What each step of a stage took, for its facts, and seconds as people say them."""

import time


class Clock:
    """Seconds between calls, each under the name of the step that has just ended."""

    def __init__(self):
        self.seconds, self.last = {}, time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{step}"], self.last = round(now - self.last, 3), now


def in_words(seconds: float) -> str:
    hours, minutes = f"{seconds / 3600:.1f} h", f"{seconds / 60:.0f} min"
    return hours if seconds > 5400 else minutes if seconds > 90 else f"{seconds:.0f} s"
