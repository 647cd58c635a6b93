"""Quantization cards: all that makes two results comparable or not, read from a network, as YAML and as a table."""

from bsq_lightning.cards.build import build_card
from bsq_lightning.cards.card import SCHEMA, Card
from bsq_lightning.cards.claims import hold_against_config, hold_against_summary, hold_same_network

__all__ = ["SCHEMA", "Card", "build_card", "hold_against_config", "hold_against_summary", "hold_same_network"]
