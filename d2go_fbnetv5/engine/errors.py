"""Errors that are the user's to mend get one sentence; all others keep their traceback."""

from d2go_fbnetv5.engine.nonfinite import NonFiniteError

USER_ERRORS = (ValueError, OSError, NonFiniteError)


def sentence(error: BaseException) -> str:
    """The error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
