"""Starts of adapters that come from data: after attaching, before training."""

from trimtab.init.fisher import fisher as fisher
