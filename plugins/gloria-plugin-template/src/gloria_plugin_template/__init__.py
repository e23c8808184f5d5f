"""The smallest complete gloria plugin: an image encoder, an aggregator and a loss."""
