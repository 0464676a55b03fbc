"""Chat JSONL in, examples in pairs out."""
