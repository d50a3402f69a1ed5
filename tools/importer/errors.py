"""The one kind of error that is told to the user as a sentence."""


class ImportRefused(Exception):
    """What is wrong with the checkpoint, in one sentence."""
