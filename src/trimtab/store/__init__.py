"""Saving and loading adapters, in Trimtab's own format and in HF PEFT's."""

from trimtab.choose import understand
from trimtab.store import hf
from trimtab.store.verbs import load as load
from trimtab.store.verbs import save as save

understand("peft_type", hf.plan)
