"""The one error type that means "the input is wrong": the command line turns it into one clear line and exit code 2."""

__all__ = ["InputError"]


class InputError(ValueError):
    """A file, a configuration or an argument that the user can put right.

    The message is one line that says what is wrong, where, and what to do.
    """
