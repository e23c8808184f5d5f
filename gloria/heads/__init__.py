"""Heads: what stands between an encoder and a loss."""

from gloria.heads.projection import Projection

__all__ = ["Projection"]
