"""``resume=FOLDER``: the folder's own config, and only such overrides as cannot change the result."""

import re
import sys

from bsq_lightning.cli.run_folder import RunFolder

#: Paths, devices and loggers; everything else is part of what the run is.
ALLOWED = re.compile(
    r"^\+{0,2}(data\.root|data\.num_workers|trainer\.(accelerator|devices|num_nodes|enable_progress_bar)|logger[.=]|preflight=|hydra\.)"
)


def resume_arguments(arguments: list[str]) -> list[str]:
    """Rewrites a command line with ``resume=FOLDER`` so that Hydra reads the folder's config and works in it.

    Raises:
        FileNotFoundError: not a run folder.
        ValueError: overrides that would make it another run; lists them with what the folder says.
    """
    resumed = [argument for argument in arguments if argument.startswith("resume=")]
    if not resumed:
        return arguments
    from omegaconf import OmegaConf

    folder = RunFolder.existing(resumed[-1].removeprefix("resume="))
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    config = OmegaConf.load(folder.config)
    differences = []
    for override in others:
        if override.startswith("-") or "=" not in override or ALLOWED.match(override):
            continue
        key, wanted = override.lstrip("+").split("=", 1)
        differences.append(f"{key}={wanted} (the folder has {OmegaConf.select(config, key)})")
    if differences:
        raise ValueError(
            f"a resumed run keeps its config, only paths, devices and loggers may change; refused: "
            f"{'; '.join(differences)}. Start a new run instead."
        )
    return [
        "--config-path", str(folder.config.parent), "--config-name", "config",
        f"hydra.run.dir={_quoted(str(folder.path))}", "hydra.output_subdir=null", *others,
    ]  # fmt: skip


def _quoted(path: str) -> str:
    return "'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'"


def rewrite_command_line() -> None:
    """Applies ``resume_arguments`` to this process; a mistake ends it with one message."""
    try:
        sys.argv[1:] = resume_arguments(sys.argv[1:])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
