"""The methods, one file each. What is here is found by being here."""

from trimtab.core.registry import methods as methods
