"""``python -m bsq_lightning.export run=FOLDER export=packed``: a file that ships, with its certificate."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bsq_lightning.cli.config import heavy_imports, instantiate, plain_errors, run_command


@plain_errors
def export(cfg: DictConfig) -> None:
    """Writes a run's newest network in a format, holds the file against the network, and says what it is."""
    with heavy_imports():
        from bsq_lightning.cli.export_table import print_export
        from bsq_lightning.cli.run.card import kept_card
        from bsq_lightning.cli.run.opening import open_run
        from bsq_lightning.cli.settings import check_values
        from bsq_lightning.cli.settings.groups import Export
        from bsq_lightning.exporters import certified_beside, certify, latencies, size_ledger

    for name in ("onnx_ir", "onnxscript"):  # they tell every node that they remove
        logging.getLogger(name).setLevel(logging.WARNING)
    check_values(cfg, Export)
    opened = open_run(cfg.run, cfg.trust, cfg.data.root, accelerator="cpu")
    network = opened.module.network.eval()
    if not network.names():
        later = [stage for stage in opened.experiment.stages if stage != opened.stage]
        how = (
            f"it can be exported from stage {later[0]} on, and python -m bsq_lightning.train resume={cfg.run} goes on"
            if later and not opened.folder.is_finished
            else f"python -m bsq_lightning.ptq run={cfg.run} makes a run folder of it that can be exported"
        )
        raise ValueError(
            f"{opened.folder.path} has only a float network (stage {opened.stage}), nothing is quantized in it: {how}"
        )
    if not opened.folder.is_finished:
        print(f"the run is not finished: this is its network of stage {opened.stage}, epoch {opened.epoch}")
    network.count_macs_(opened.datamodule.image_size)
    state = network.state().fitting()  # planes may hold larger codes between two adjustments
    images = next(iter(opened.datamodule.test_dataloader()))[0][: max(2, cfg.images)]
    path = Path(cfg.out or opened.folder.path / "export" / cfg.export.file).expanduser().resolve()
    if path.exists() and not cfg.overwrite:
        raise ValueError(f"{path} is there already: overwrite=true replaces it, out=FILE writes another")
    if cfg.latency and cfg.export.file != "network.onnx":
        raise ValueError("latency is measured in onnxruntime: ask for it with export=onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {"architecture": opened.experiment.architecture(opened.datamodule.num_classes)}
    if cfg.card:
        card["card"] = kept_card(opened.folder, opened.experiment, network).sections
    try:
        exported = instantiate(cfg.export.write)(path, network.net, state, images, card=card, overwrite=cfg.overwrite)
    except ModuleNotFoundError as error:  # an extra that is not installed
        raise ValueError(str(error)) from error
    report = dict(exported.report)
    if cfg.latency:
        timed = latencies(path, network.net, state, images, cfg.latency)
        report["latency_of_one_image"] = [str(each) for each in timed]
    files = {each.name: each for each in sorted({path, *certified_beside(path, state)})}
    ledger = size_ledger(network.net, state, files)
    certificate = certify(path, network.net, state, images, report=report, ledger=ledger, overwrite=cfg.overwrite)
    print_export(exported, report, ledger, certificate)


def main() -> None:
    """Console entry point."""
    run_command(export, "export")


if __name__ == "__main__":
    main()
