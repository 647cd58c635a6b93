"""Where the configs are, how objects are made from them, and how a user's mistake is shown."""

import atexit
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bsq_lightning import __version__
from bsq_lightning.files import FULL
from bsq_lightning.identity import upgraded

#: What a user's mistake raises; shown as one message.
USER_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, OmegaConfBaseException)
_PACKAGE = Path(__file__).parents[1]
_CHECKOUT = _PACKAGE.parents[1] / "conf"
#: ``conf/`` at the top of a checkout; inside the package when installed from a wheel.
CONF_DIR = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _CHECKOUT)


def read_config(path: Path) -> DictConfig:
    """Reads the ``config.yaml`` of a run folder: plain values, no tag that would make an object.

    Raises:
        ValueError: it is no such file; the message names it.
    """
    import yaml
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as the config of a run ({reason}): nothing in it is used") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} is not the config of a run: it holds a list")
    plain: Any = OmegaConf.to_container(config)
    return OmegaConf.create(upgraded(plain))


def read_overrides(folder: Path) -> list[str]:
    """What was set on the command line of a run, as Hydra keeps it in the run folder; empty if it does not."""
    import yaml

    path = folder / ".hydra" / "overrides.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else []
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a list of overrides ({' '.join(str(error).split())})") from error
    return [str(each) for each in content] if isinstance(content, list) else []


def instantiate(config: Any, **arguments: Any) -> Any:
    """Hydra's ``instantiate``, with the constructor's own complaint in front; an empty config (``none``) gives None.

    Raises:
        ValueError: the target cannot be found, or its constructor refuses; the message names target and cause.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    if not config:
        return None
    try:
        return hydra_instantiate(config, **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, (ValueError, FileNotFoundError)):
            raise cause from None
        raise ValueError(f"{config.get('_target_')}: {cause}") from error


def quote_paths(arguments: list[str]) -> list[str]:
    """Quotes the values that are paths of something there, for Hydra, whose grammar minds the = in names of points.

    Example:
        >>> quote_paths(["run=/", "reg.alpha=1e-3,2e-3"])
        ['run=/', 'reg.alpha=1e-3,2e-3']
    """
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and set("=, '()") & set(value) and os.path.exists(os.path.expanduser(value)):
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            argument = f"{key}='{escaped}'"
        quoted.append(argument)
    return quoted


def options_first(arguments: list[str]) -> list[str]:
    """The options in front of the overrides: argparse, as Hydra asks it, reads no override behind an option that stands
    among others.

    Example:
        >>> options_first(["model=resnet20", "-m", "reg.alpha=1e-3,2e-3", "--config-dir", "my=conf", "seed=1"])
        ['-m', '--config-dir', 'my=conf', 'model=resnet20', 'reg.alpha=1e-3,2e-3', 'seed=1']
    """
    from hydra._internal.utils import get_args_parser

    overrides = list(get_args_parser().parse_intermixed_args(arguments).overrides)
    options, left = [], list(overrides)
    for argument in arguments:
        if left and argument == left[0]:
            left.pop(0)
        else:
            options.append(argument)
    return options + overrides


def quiet_lightning() -> None:
    """Lightning announces devices and tips at every Trainer, twice under Hydra's logging; a run makes five of them."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore",
        message="(?s).*(does not have many workers|LeafSpec|exists and is not empty|smaller than the logging|"
        "`srun` command is available|broadcast_buffers. is deprecated|sync_dist=True)",
    )


def import_from_here() -> None:
    """Lets a command that is installed find a user's package in the current folder, as ``python -m`` does."""
    here = os.getcwd()
    if not sys.flags.safe_path and not {"", here} & set(sys.path):
        sys.path.insert(0, here)


def run_command(task: Callable[..., Any], config_name: str) -> None:
    """Runs a command as a Hydra application, on this process's command line."""
    if "--version" in sys.argv[1:]:  # Hydra would answer with its own
        print(f"bsq_lightning {__version__}")
        return
    import hydra

    import_from_here()
    sys.argv[1:] = quote_paths(options_first(sys.argv[1:]))
    if empty := [group for group in map(_emptied, sys.argv[1:]) if group]:
        files = sorted(path.stem for path in (Path(CONF_DIR) / empty[0]).glob("*.yaml"))
        sys.exit(f"error: {empty[0]} must be one of {', '.join(files)}, or a file of yours (--config-dir), not null")
    # Models and data sets have readers of their own, and torchvision's runs whatever a file of weights asks for.
    if "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ:
        os.environ.setdefault("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    # Where hydra-submitit-launcher is installed, its launcher of this name becomes the schema of ours, which fits.
    warnings.filterwarnings("ignore", message="(?s).*submitit_slurm' is validated against ConfigStore schema")
    # What Hydra would print as a traceback comes here; processes that this one starts are told whose wish it is.
    whole = os.environ.get("HYDRA_FULL_ERROR", "0") != "0" and "BSQ_PLAIN_ERRORS" not in os.environ
    if not whole:
        os.environ["HYDRA_FULL_ERROR"] = os.environ["BSQ_PLAIN_ERRORS"] = "1"
    try:
        hydra.main(version_base="1.3", config_path=CONF_DIR, config_name=config_name)(task)()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (*USER_ERRORS, HydraException) as error:
        if whole:
            raise
        print(f"error: {_of_hydra(error)}", file=sys.stderr)
        sys.exit(1)


def _emptied(argument: str) -> str | None:
    """The group of files that an argument sets to null, which Hydra ends with a traceback."""
    key, equals, value = argument.partition("=")
    return key if equals and value in ("", "null") and (Path(CONF_DIR) / key).is_dir() else None


def _of_hydra(error: Exception) -> str:
    """What is wrong with a command line, or with the folder that Hydra makes for it, in one message."""
    if isinstance(error, OSError) and (error.filename or error.errno in FULL):
        folder = error.filename or "the run folder"  # of a full disk the system does not say where it is
        return (
            f"{folder} cannot be made or written ({error.strerror}): choose another folder with "
            "hydra.run.dir=FOLDER, or hydra.sweep.dir=FOLDER for a sweep"
        )
    cause = f"\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return f"{error}{cause}"


@contextmanager
def heavy_imports() -> Iterator[None]:
    """For the imports of torch and Lightning: they make a million objects and hardly any garbage, so that looking for
    it costs a quarter of the time to the first step. No later collection looks at these objects either. Later jobs of
    one process import nothing, and what the one before has left behind is not to be kept."""
    if "lightning" in sys.modules:
        quiet_lightning()
        yield
        return
    gc.disable()
    atexit.register(gc.unfreeze)  # or triton's bindings report what nobody frees at the end as leaks, in thirty lines
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        quiet_lightning()


def plain_errors(task: Callable[..., Any]) -> Callable[..., Any]:
    """Shows a user's mistake as one message and exit code 1, or that of the error (``hydra.verbose=bsq_lightning`` adds
    the traceback)."""

    @wraps(task)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return task(*args, **kwargs)
        except USER_ERRORS as error:
            from hydra.core.hydra_config import HydraConfig
            from hydra.types import RunMode

            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # Hydra reports the failing job and stops the sweep
            log = logging.getLogger("bsq_lightning")
            log.error("%s", error)
            log.debug("where", exc_info=True)  # hydra.verbose=bsq_lightning shows it
            sys.exit(getattr(error, "exit_status", 1))

    return run
