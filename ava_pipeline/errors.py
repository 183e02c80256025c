"""Every exception of ava_pipeline.

    AvaPipelineError                  catch this to catch them all
    ├── ConfigError                   a config file, a setting or a path it names cannot be used
    ├── DataError                     the training data cannot be used
    │   ├── LabelsError               AVA.txt: rows that are not labels
    │   ├── ImagesError               too many images missing or broken
    │   └── SplitError                sets that overlap or are empty
    ├── TrainingError                 training cannot start or go on
    │   ├── RunExistsError            the output directory already holds a run
    │   ├── RunInUseError             another process writes the output directory
    │   ├── CheckpointError           a checkpoint cannot be read or does not fit
    │   └── NonFiniteLossError        the loss became nan or inf, and the config says stop
    ├── TelemetryError                the collector
    │   ├── MisuseError               a call at the wrong time or with the wrong argument
    │   ├── GroupsError               no parameters behind a column
    │   ├── PredictionsError          predictions that are no score distributions
    │   ├── WriteError                rows that could not be written
    │   ├── ChannelFullError          no room for another row
    │   └── ChannelClosedError        rows are no longer taken
    └── RunError                      a run directory on disk
        ├── NotARunError              nothing there that telemetry wrote
        └── DamagedFileError          a file that cannot be read back

Each message says what was given, what is allowed, and what to do.
"""

from enum import IntEnum
from importlib import import_module


class AvaPipelineError(Exception):
    """Base of every exception of ava_pipeline."""


class ConfigError(AvaPipelineError, ValueError):
    """A config file, a setting or a path it names cannot be used."""


class DataError(AvaPipelineError):
    """The training data cannot be used."""


class LabelsError(DataError, ValueError):
    """The labels file holds rows that are not labels."""


class ImagesError(DataError):
    """Too many images are missing or broken."""


class SplitError(DataError, ValueError):
    """The train, validation and test sets overlap, or one of them is empty."""


class TrainingError(AvaPipelineError):
    """Training cannot start or cannot go on."""


class RunExistsError(TrainingError):
    """The output directory already holds a run."""


class RunInUseError(TrainingError):
    """Another process writes into the output directory."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be read or does not fit the model."""


class NonFiniteLossError(TrainingError, ArithmeticError):
    """The loss became nan or inf and the config says to stop."""


class TelemetryError(AvaPipelineError):
    """The collector cannot do what was asked."""


class MisuseError(TelemetryError, ValueError):
    """A call came at the wrong time or with the wrong argument."""


class GroupsError(TelemetryError, ValueError):
    """There are no parameters behind a column."""


class PredictionsError(TelemetryError, ValueError):
    """Predictions are no score distributions, or name an image twice."""


class WriteError(TelemetryError):
    """Rows could not be written, and the config says to raise."""


class ChannelFullError(TelemetryError):
    """The channel has no room for another row."""


class ChannelClosedError(TelemetryError):
    """The channel takes no more rows."""


class RunError(AvaPipelineError):
    """A run directory on disk cannot be used."""


class NotARunError(RunError, FileNotFoundError):
    """The directory holds nothing that telemetry wrote."""


class DamagedFileError(RunError, ValueError):
    """A file of the run cannot be read back."""


def in_words(error: BaseException) -> str:
    """What an error says as a sentence: a system's error without its number, any other foreign one behind its type."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif isinstance(error, AvaPipelineError):
        text = str(error)
    else:
        text = ": ".join(part for part in (type(error).__name__, str(error)) if part)
    return text if text.endswith((".", "!", "?")) else f"{text}."


class ExitStatus(IntEnum):
    """How the command line ends; a signal N ends it with `SIGNAL_STATUS + N`."""

    SUCCESS = 0
    PROBLEMS = 1
    WRONG_USAGE = 2
    INTERNAL_ERROR = 3


SIGNAL_STATUS = 128


def exit_status(error: Exception) -> ExitStatus:
    """The exit status of a command that an error ended."""
    if isinstance(error, ConfigError | GroupsError | MisuseError | RunExistsError | NotARunError):
        return ExitStatus.WRONG_USAGE
    return ExitStatus.PROBLEMS if isinstance(error, AvaPipelineError) else ExitStatus.INTERNAL_ERROR


def require_extra(purpose: str, extra: str, *modules: str) -> None:
    """Check that the modules of an optional dependency can be imported.

    Args:
        purpose: the start of the message, such as "Training".
        extra: the extra of ava-pipeline that installs them.
        modules: their names.

    Raises:
        ConfigError: a module is missing; the message names the extra to install.
    """
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{purpose} needs {error.name}: pip install 'ava-pipeline[{extra}]'.") from error
