"""``resume=FOLDER``: the folder's own config, and only such overrides as cannot change the result."""

import sys
from pathlib import Path
from typing import Any

from bsq_lightning.cli.config import CONF_DIR, read_config
from bsq_lightning.cli.run.joining import one_run_folder
from bsq_lightning.cli.trust import check_settled
from bsq_lightning.files import check_inside
from bsq_lightning.identity import is_free
from bsq_lightning.run_folder import RunFolder

NAME = "resumed_run"


def resume_arguments(arguments: list[str]) -> list[str]:
    """Rewrites a command line with ``resume=FOLDER`` so that Hydra reads the folder's config and works in it.

    Raises:
        FileNotFoundError: not a run folder.
        ValueError: arguments that would make it another run; lists them with what the folder has. Or a config that
            would configure Hydra itself.
    """
    resumed = [argument for argument in arguments if argument.startswith("resume=")]
    if not resumed:
        return arguments
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    folder = RunFolder.existing(resumed[-1].removeprefix("resume="))
    check_inside(folder.path)  # before Hydra opens its log there
    config = read_config(folder.config)
    # They would act before anything is compared: callbacks, environment variables, files of configs.
    foreign = [key for key in ("hydra", "defaults") if key in config]
    if foreign:
        raise ValueError(f"{folder.config} was not written by a run: take {' and '.join(foreign)} out of it")
    check_settled(OmegaConf.to_container(config), folder.config)
    config.pop("trust", None)  # which is the user's to say, not the folder's
    overrides, refused = ["+trust=[]"], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key == "resume":
            continue
        if key == "trust":
            overrides[0] = f"+trust={value}"
            continue
        if not equals or not (is_free(key) or key == "hydra.verbose"):
            has = OmegaConf.select(config, key.lstrip("+~")) if not key.startswith("-") else None
            refused.append(f"{argument} (the folder has {has})" if has is not None else argument)
        overrides += _exchange_logger(value, config) if key == "logger" else [argument]
    if refused:
        raise ValueError(
            f"a resumed run keeps its config, only paths, devices and loggers may change; refused: "
            f"{'; '.join(refused)}. Start a new run instead."
        )
    # Stored instead of given as a path: files beside it would replace those of conf/ with the same name.
    ConfigStore.instance().store(NAME, config)
    path = str(folder.path).replace("\\", "\\\\").replace("'", "\\'")
    return [
        "--config-name", NAME,
        f"hydra.run.dir='{path}'", "hydra.output_subdir=null", "hydra/job_logging=plain", *overrides,
    ]  # fmt: skip


def _exchange_logger(value: str, config: Any) -> list[str]:
    """The folder's config has no defaults list in which a group could be exchanged: adds the new, removes the old."""
    from omegaconf import OmegaConf

    files = [Path(CONF_DIR) / "logger" / f"{name.strip()}.yaml" for name in value.strip("[]").split(",")]
    new = {key for file in files if file.is_file() for key in OmegaConf.load(file)}
    old = OmegaConf.select(config, "logger") or {}
    return [f"+logger={value}", *(f"~logger.{key}" for key in old if key not in new)]


def rewrite_command_line() -> None:
    """Applies ``resume=`` and, under torchrun or srun, the common run folder; a mistake ends it with one message."""
    try:
        for argument in sys.argv[1:]:
            if argument.startswith("hydra.run.dir="):  # a folder that is there already gets Hydra's files at once
                check_inside(Path(argument.partition("=")[2].strip("'\"")).expanduser())
        sys.argv[1:] = one_run_folder(resume_arguments(sys.argv[1:]))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
