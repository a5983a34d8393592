"""The fixtures `clock` (each test twice: natively and virtually) and `virtual_clock`."""

from tests.clock.fixture import build_directory, clock, virtual_clock

__all__ = ["build_directory", "clock", "virtual_clock"]
