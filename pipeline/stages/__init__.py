"""The stages in the order of the data, each a thin file: plan the units, map them, say what came out."""

from pipeline.stage import Spec

_SPECS = (
    Spec(
        "fetch",
        "lists the crawl's segments: own files, Common Crawl's snapshots (downloaded), or a demo crawl",
        (),
        ("crawl.kind", "crawl.demo_segments", "crawl.demo_share"),
        choices=(
            *("crawl.files", "crawl.text_column", "crawl.split_bytes"),
            *("crawl.dump", "crawl.segments", "crawl.content", "crawl.root", "crawl.download", "crawl.connections"),
        ),
        always=True,
    ),
    Spec(
        "hash",
        "writes the keys of every paragraph, by hash partition",
        ("fetch",),
        ("crawl.min_length", "dedup.partitions"),
    ),
    Spec("dedup", "marks the paragraphs to keep, over all segments", ("hash",), ("dedup.keep", "dedup.partitions")),
    Spec(
        "lm",
        "trains SentencePiece and KenLM models on held-out clean pages, or takes those of lm.dir",
        ("fetch", "hash", "dedup"),
        ("crawl.min_length", "language", "lm"),
        ("language.model", "lm.dir"),
    ),
    Spec(
        "mine",
        "removes duplicates, identifies languages, scores perplexity, writes the corpus by language and bucket",
        ("fetch", "hash", "dedup", "lm"),
        ("crawl.min_length", "dedup.min_length", "language", "bucket"),
        ("language.model",),
    ),
    Spec(
        "tokenizer",
        "trains LLaMA's SentencePiece BPE on the corpus, or takes tokenizer.model",
        ("mine",),
        ("tokenizer", "tokenize.buckets"),
        ("tokenizer.model",),
    ),
    Spec("tokenize", "writes token shards and a fixed validation split", ("mine", "tokenizer"), ("tokenize",)),
    Spec("train", "pretrains the model with DeepSpeed", ("tokenizer", "tokenize"), ("model", "train", "zero"), folder="train"),
    Spec("evaluate", "validation perplexity before and after training", ("tokenizer", "tokenize", "train"), ("evaluate",)),
    Spec("export", "writes the model in Hugging Face format and compares it there", ("tokenizer", "train"), ()),
    Spec("report", "one HTML page on the crawl, the corpus and the training", (), (), always=True),
)
SPECS = {spec.name: spec for spec in _SPECS}
