"""Was it worth it: methods, bases and few-shot examples beside each other. See docs/compare.md."""
