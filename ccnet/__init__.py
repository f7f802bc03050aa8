"""Web crawl in, filtered corpus out: duplicate lines removed, language identified, perplexity bucketed.

Follows CCNet (arXiv 1911.00359) and its released code. Documents are Arrow record batches from the reader to Parquet.
Reading order: schema, crawl, gzip_members, records, html, text_files, lines, wet, parts, normalize, dedup,
language, perplexity, buckets, filter, corpus; train_lm beside them.
"""
