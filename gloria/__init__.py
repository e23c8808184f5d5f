"""gloria: global-local contrastive learning of medical images and their reports."""

__version__ = "0.1.0"
