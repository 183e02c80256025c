"""Every exception of ava_pipeline, and how an error ends the command line.

    AvaPipelineError                  base class: catch it to catch all of them
    ├── ConfigError                   a config file, a setting or a path in it cannot be used
    ├── DataError                     the training data cannot be used
    │   ├── LabelsError               AVA.txt has rows that are not labels
    │   ├── ImagesError               too many images are missing or broken
    │   └── SplitError                the sets overlap, or one is empty
    ├── TrainingError                 training cannot start or continue
    │   ├── RunExistsError            the output directory already holds a run
    │   ├── RunInUseError             another process writes to the output directory
    │   ├── CheckpointError           a checkpoint cannot be read or does not fit the model
    │   └── NonFiniteLossError        the loss became nan or inf, and the config says to stop
    ├── TelemetryError                the collector cannot do what it was asked to
    │   ├── MisuseError               a call at the wrong time or with a wrong argument
    │   ├── GroupsError               a column without parameters
    │   ├── PredictionsError          predictions that are not score distributions
    │   ├── WriteError                rows could not be written
    │   ├── ChannelFullError          the channel has no space for another row
    │   └── ChannelClosedError        the channel accepts no more rows
    └── RunError                      a run directory on disk cannot be used
        ├── NotARunError              the directory holds no telemetry
        └── DamagedFileError          a file of the run cannot be read

Each message says what was expected, what was given, and what to do.
"""

from enum import IntEnum
from importlib import import_module


class AvaPipelineError(Exception):
    """Base class of every exception of ava_pipeline.

    try:
        run = ava_pipeline.open_run(path)
    except ava_pipeline.AvaPipelineError as error:
        sys.exit(str(error))
    """


class ConfigError(AvaPipelineError, ValueError):
    """A config file, a setting or a path in it cannot be used."""


class DataError(AvaPipelineError):
    """The training data cannot be used."""


class LabelsError(DataError, ValueError):
    """The labels file has rows that are not labels."""


class ImagesError(DataError):
    """Too many images are missing or broken."""


class SplitError(DataError, ValueError):
    """The train, validation and test sets overlap, or one of them is empty."""


class TrainingError(AvaPipelineError):
    """Training cannot start or continue."""


class RunExistsError(TrainingError):
    """The output directory already holds a run."""


class RunInUseError(TrainingError):
    """Another process writes to the output directory."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be read or does not fit the model."""


class NonFiniteLossError(TrainingError, ArithmeticError):
    """The loss became nan or inf, and the config says to stop."""


class TelemetryError(AvaPipelineError):
    """The collector cannot do what it was asked to."""


class MisuseError(TelemetryError, ValueError):
    """A call came at the wrong time or with a wrong argument."""


class GroupsError(TelemetryError, ValueError):
    """A column has no parameters, or its name cannot be used."""


class PredictionsError(TelemetryError, ValueError):
    """Predictions are not score distributions, or name an image twice."""


class WriteError(TelemetryError):
    """Rows could not be written, and the config says to raise."""


class ChannelFullError(TelemetryError):
    """The channel has no space for another row."""


class ChannelClosedError(TelemetryError):
    """The channel accepts no more rows."""


class RunError(AvaPipelineError):
    """A run directory on disk cannot be used."""


class NotARunError(RunError, FileNotFoundError):
    """The directory holds no telemetry."""


class DamagedFileError(RunError, ValueError):
    """A file of the run cannot be read."""


def in_words(error: BaseException) -> str:
    """Describe an error in a sentence.

    An error of the operating system is described without its number, an error of another library with its type.
    """
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif isinstance(error, AvaPipelineError):
        text = str(error)
    else:
        text = ": ".join(part for part in (type(error).__name__, str(error)) if part)
    return text if text.endswith((".", "!", "?")) else f"{text}."


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


class ExitStatus(IntEnum):
    """How the command line ends; after signal N it is `SIGNAL_STATUS + N`."""

    SUCCESS = 0
    PROBLEMS = 1
    WRONG_USAGE = 2
    INTERNAL_ERROR = 3


SIGNAL_STATUS = 128


def exit_status(error: Exception) -> ExitStatus:
    """The exit status of a command that ended with an error."""
    if isinstance(error, ConfigError | GroupsError | MisuseError | RunExistsError | NotARunError):
        return ExitStatus.WRONG_USAGE
    return ExitStatus.PROBLEMS if isinstance(error, AvaPipelineError) else ExitStatus.INTERNAL_ERROR
