"""Corpus in, training samples out: tokenizer, encoder, token shards on disk, and the order in which they are read."""
