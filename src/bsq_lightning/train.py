"""``python -m bsq_lightning.train model=resnet20 reg.alpha=1e-3``: float -> bit planes -> fine-tuning -> test.

The whole pipeline in one run folder; ``-m`` sweeps; ``resume=FOLDER`` continues; ``preflight=only`` checks.
"""

import json
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bsq_lightning.cli.config import plain_errors, run_command
from bsq_lightning.cli.resume import rewrite_command_line


@plain_errors
def train(cfg: DictConfig) -> float:
    """Runs one config and returns its final test accuracy. A finished run is shown again, not repeated."""
    # Torch and Lightning take seconds to import: after Hydra has answered --help and --cfg, or refused an override.
    from bsq_lightning.cli.build import check_settings
    from bsq_lightning.cli.float_stage import take_float_stage
    from bsq_lightning.cli.loggers import mirrored
    from bsq_lightning.cli.preflight import preflight
    from bsq_lightning.cli.settled import settle
    from bsq_lightning.cli.stages import run_stages
    from bsq_lightning.cli.tables import print_summary
    from bsq_lightning.files import write_whole
    from bsq_lightning.run_folder import RunFolder

    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    check_settings(cfg)
    folder.check_writable()
    with folder.running():
        cfg = settle(cfg, folder)
        if not folder.is_finished:
            with folder.recording_errors():
                take_float_stage(cfg, folder)
                datamodule = preflight(cfg, folder)
                if cfg.preflight == "only":
                    return float("nan")
                with mirrored(cfg, folder) as mirrors:
                    summary = run_stages(cfg, folder, datamodule, mirrors)
                    if summary is None:
                        print(f"stopped after stage {cfg.until}, as asked; go on with resume={folder.path}")
                        return float("nan")
                    write_whole(folder.path / "summary.json", json.dumps(summary, indent=1))
                    mirrors.log_summary(summary)
                    print_summary(folder, summary)
        else:
            print_summary(folder, folder.summary())
    summary = folder.summary()
    return summary["accuracy"]["final"]["test/acc"]


def main() -> None:
    """Console entry point."""
    rewrite_command_line()
    run_command(train, "train")


if __name__ == "__main__":
    main()
