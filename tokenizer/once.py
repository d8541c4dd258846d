"""What is said once in a process, however often it is met."""

_said: set[str] = set()


def first_time(what: str) -> bool:
    """Whether `what` is met for the first time in this process."""
    if what in _said:
        return False
    _said.add(what)
    return True
