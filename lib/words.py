"""What is said to a person at work: a line at once, an error in its first line, seconds as people say them."""


def say(text: str) -> None:
    print(text, flush=True)


def first_line(said) -> str:
    """Of an error or a text; the name of an error that says nothing."""
    lines = str(said).strip().splitlines() or [type(said).__name__ * isinstance(said, BaseException)]
    return lines[0].strip()[:300]


def in_words(seconds: float) -> str:
    hours, minutes = f"{seconds / 3600:.1f} h", f"{seconds / 60:.0f} min"
    return hours if seconds > 5400 else minutes if seconds > 90 else f"{seconds:.0f} s"
