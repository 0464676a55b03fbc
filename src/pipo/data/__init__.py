"""Chat JSONL in, pairs out."""
