"""Tasks of one's own, as anybody would write them: `--task own.kwt:Keywords`."""
