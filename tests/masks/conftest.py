"""What several mask tests share."""

from tests.faces.conftest import no_network, toy_pack, toy_settings

__all__ = ["no_network", "toy_pack", "toy_settings"]
