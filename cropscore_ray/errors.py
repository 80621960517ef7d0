"""Everything that cropscore raises on purpose.

CropscoreError            the command line prints it as one message, without a traceback
├── ConfigError           an argument or a config field is wrong (exit 2)
├── DataError             a source, a manifest or a table cannot be used as it is
├── StorageError          a location cannot be read or written
├── ModelError            a bundle or a weights file is missing, damaged or of another kind
├── RunConflictError      the run folder belongs to another run
└── ClusterError          a cluster cannot be reached, or does not do what it is asked
ImageError                one image cannot be used; it becomes a row with a status, never an exit
"""


class CropscoreError(Exception):
    """What went wrong and where; `hint` is what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(CropscoreError):
    """An argument or a config field breaks a rule; the message names the dotted field."""

    exit_code = 2


class DataError(CropscoreError):
    """A source, a manifest or a table cannot be used as it is."""


class StorageError(CropscoreError):
    """A location cannot be read or written."""


class ModelError(CropscoreError):
    """A model bundle or a weights file is missing, damaged or of another kind."""


class ClusterError(CropscoreError):
    """A cluster cannot be reached, or does not do what it is asked."""


class RunConflictError(CropscoreError):
    """The run folder belongs to a run with another model, config or manifest."""


class ImageError(Exception):
    """One image cannot be used: `status` is one of schema.STATUSES, the message is why."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return ImageError, (self.status, str(self))
