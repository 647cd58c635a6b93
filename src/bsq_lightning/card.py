"""``python -m bsq_lightning.card run=FOLDER``: what was really done, computed again from the weights.

``diff=OTHER`` prints only the fields in which two cards differ.
"""

from omegaconf import DictConfig

from bsq_lightning.cli.config import heavy_imports, plain_errors, run_command


@plain_errors
def card(cfg: DictConfig) -> None:
    """Prints the card of a finished run and keeps it in its folder; or prints where it differs from another."""
    with heavy_imports():
        from bsq_lightning.cards import Card
        from bsq_lightning.cards.card import cell
        from bsq_lightning.cli.run.card import card_of_run, check_kept, write_card
        from bsq_lightning.cli.run.opening import open_run
        from bsq_lightning.cli.settings import check_values
        from bsq_lightning.cli.settings.groups import Card as CardSettings
        from bsq_lightning.quantized_tensor import load_state
        from bsq_lightning.run_folder import RunFolder

    check_values(cfg, CardSettings)
    folder = RunFolder.existing(cfg.run)
    other = Card.load(cfg.diff) if cfg.diff else None
    summary = folder.summary()
    load_state(folder.quantized_file)  # a float run has none, and needs no data to be told so
    opened = open_run(cfg.run, cfg.trust, cfg.data.root, accelerator="cpu")
    network = opened.module.network.eval()
    network.count_macs_(opened.datamodule.image_size)
    found = card_of_run(folder, opened.experiment, network, opened.datamodule, summary)
    if not cfg.overwrite:
        check_kept(folder, found)
    write_card(folder, found)
    if other is None:
        print(found.to_markdown())
        return
    differences = found.differences(other)
    for name, pair in differences.items():
        print(f"{name}: {' | '.join(cell(value) for value in pair)}")
    print(f"{len(differences)} fields differ" if differences else "the cards agree in every field")


def main() -> None:
    """Console entry point."""
    run_command(card, "card")


if __name__ == "__main__":
    main()
