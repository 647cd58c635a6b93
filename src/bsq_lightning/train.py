"""``python -m bsq_lightning.train model=resnet20 reg.alpha=1e-3``: float -> bit planes -> fine-tuning -> test.

The whole pipeline in one run folder; ``-m`` sweeps; ``resume=FOLDER`` continues; ``preflight=only`` checks.
"""

import json
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bsq_lightning.cli.config import CONF_DIR, plain_errors, quick_help
from bsq_lightning.cli.resume import rewrite_command_line


@plain_errors
def train(cfg: DictConfig) -> float:
    """Runs one config and returns its final test accuracy. A finished run is shown again, not repeated."""
    # Torch and Lightning take seconds to import: after Hydra has answered --help and --cfg, or refused an override.
    from bsq_lightning.cli.build import check_settings
    from bsq_lightning.cli.preflight import preflight
    from bsq_lightning.cli.settled import settle
    from bsq_lightning.cli.stages import run_stages
    from bsq_lightning.cli.tables import print_summary
    from bsq_lightning.files import write_whole
    from bsq_lightning.run_folder import RunFolder

    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    check_settings(cfg)
    folder.check_writable()
    cfg = settle(cfg, folder)
    if folder.is_finished:
        summary = folder.summary()
        print_summary(folder, summary)
        return summary["accuracy"]["final"]["test/acc"]
    datamodule = preflight(cfg, folder)
    if cfg.preflight == "only":
        return float("nan")
    summary = run_stages(cfg, folder, datamodule)
    write_whole(folder.path / "summary.json", json.dumps(summary, indent=1))
    print_summary(folder, summary)
    return summary["accuracy"]["final"]["test/acc"]


def main() -> None:
    """Console entry point."""
    quick_help()
    rewrite_command_line()
    hydra.main(version_base="1.3", config_path=CONF_DIR, config_name="train")(train)()


if __name__ == "__main__":
    main()
