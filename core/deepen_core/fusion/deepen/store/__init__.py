"""Sparse rows of relative spaces on disk, so that the next process need not build them."""

from deepen_core.fusion.deepen.store.files import RowStore, StoreEntry, StoreWarning, default_folder
from deepen_core.fusion.deepen.store.fingerprints import FORMAT_VERSION, Fingerprint, fingerprint
from deepen_core.fusion.deepen.store.format import LAYOUT

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
