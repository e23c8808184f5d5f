"""TorchXRayVision's chest X-ray backbones as image encoders of gloria."""
