"""Several trained adapters into one, and an adapter out of two models. See docs/combining.md."""

from trimtab.combine.adapters import adapters as adapters
from trimtab.combine.extract import Extraction as Extraction
from trimtab.combine.extract import extract as extract
