"""Sparse rows of relative spaces on disk, so that the next process need not build them."""

from deepen_core.store.fingerprints import FORMAT_VERSION, Fingerprint, fingerprint
from deepen_core.store.rows import RowStore, StoreEntry, StoreWarning, default_folder
from deepen_core.store.sealing import LAYOUT

__all__ = [
    "FORMAT_VERSION",
    "LAYOUT",
    "Fingerprint",
    "RowStore",
    "StoreEntry",
    "StoreWarning",
    "default_folder",
    "fingerprint",
]
