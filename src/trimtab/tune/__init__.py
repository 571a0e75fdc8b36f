"""`tune`: from a configuration to a run's folder with an adapter, its proof and its report."""
