"""Ambry: a distributed, immutable blob store.

The layers and what may import what are drawn in docs/ARCHITECTURE.md and held by import-linter.
"""

from typing import Final

__version__: Final = "0.1.0"
