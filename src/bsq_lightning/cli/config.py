"""Where the configs are, how objects are made from them, and how a user's mistake is shown."""

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

_PACKAGE = Path(__file__).parents[1]
_CHECKOUT = _PACKAGE.parents[1] / "conf"
#: ``conf/`` at the top of a checkout; inside the package when installed from a wheel.
CONF_DIR = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _CHECKOUT)


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


def run_command(task: Callable[..., Any], config_name: str) -> None:
    """Runs a command as a Hydra application, on this process's command line."""
    import hydra

    sys.argv[1:] = quote_paths(sys.argv[1:])
    if {"--help", "-h", "--hydra-help"}.intersection(sys.argv[1:]):
        from hydra.core.config_store import ConfigStore

        # Half the time of --help: Hydra copies its store of configs once a group, only to read it.
        ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    hydra.main(version_base="1.3", config_path=CONF_DIR, config_name=config_name)(task)()


def plain_errors(task: Callable[..., Any]) -> Callable[..., Any]:
    """Shows a user's mistake as one message and exit code 1 (``hydra.verbose=bsq_lightning`` adds the traceback)."""

    @wraps(task)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return task(*args, **kwargs)
        except (ValueError, FileNotFoundError, PermissionError, OmegaConfBaseException) as error:
            from hydra.core.hydra_config import HydraConfig
            from hydra.types import RunMode

            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # Hydra reports the failing job and stops the sweep
            log = logging.getLogger("bsq_lightning")
            log.error("%s", error)
            log.debug("where", exc_info=True)  # hydra.verbose=bsq_lightning shows it
            sys.exit(1)

    return run
