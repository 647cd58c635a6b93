"""What the commands share: configuration, run folders, building, stages. The only floor that sees a DictConfig."""
