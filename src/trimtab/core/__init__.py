"""What every method stands on: sites, laws, deltas, kernels; torch alone is imported."""
