"""Pages of docs/ that scripts/docs.py writes, one module each."""
