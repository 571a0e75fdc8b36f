"""What a model answers, how well, and for whom. See docs/eval.md."""
