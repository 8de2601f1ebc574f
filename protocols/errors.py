"""The one base of every mistake that a user can make."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user wrote: a configuration, a file, the command line.

    `launch.py` prints its message and ends with exit code 2; any other exception is a defect of ours and keeps
    its traceback. The message names the key (with file and line where there is one) and what would be valid. A
    subclass with arguments of its own must survive pickling, since errors cross processes.
    """
