"""What the package offers."""

from gloria import functional


def test_every_public_name_is_there():
    assert all(hasattr(functional, name) for name in functional.__all__)
