"""The stages in the order of the data, each a thin file: plan the units, map them, say what came out."""

from pipeline.stage import Spec
from pipeline.training.settings import HOW

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
    Spec(
        "dedup",
        "marks the paragraphs to keep, over all segments",
        ("hash",),
        ("dedup.keep", "dedup.partitions", "dedup.seen"),
        runs=(("dedup.seen", "hash"),),
    ),
    Spec(
        "lm",
        "trains SentencePiece and KenLM models on held-out clean pages or lm.text, or takes those of lm.url or lm.dir",
        ("fetch", "hash", "dedup"),
        ("crawl.min_length", "language.model", "language.mine", "lm"),
        ("language.model", "lm.dir", "lm.text"),
        alone=("lm.dir", "lm.text", "lm.url"),
    ),
    Spec(
        "mine",
        "removes duplicates, identifies languages, scores perplexity",
        ("fetch", "hash", "dedup", "lm"),
        ("crawl.min_length", "language.model", "language.whole", "language.mine", "quality", "keep_dropped"),
        ("language.model", "quality.bad_words", "quality.evaluations"),
    ),
    Spec("near", "finds near-duplicate documents, where near.threshold is set", ("mine",), ("near",)),
    Spec(
        "references",
        "scores documents by their likeness to pages that Wikipedia cites, where references.dumps is set",
        ("mine",),
        ("references.dumps", "references.match", "references.examples"),
        ("references.dumps",),
    ),
    Spec(
        "regenerate",
        "writes what mine wrote in another run, from the crawl and that run's metadata, without keys or models",
        ("fetch",),
        ("regenerate",),
        ("regenerate.metadata",),
        writes="mine",
    ),
    Spec(
        "regroup",
        "applies thresholds and cut-offs to the scores, writes the corpus by language and bucket",
        ("mine", "near", "references"),
        (
            *("dedup.min_length", "language.threshold", "language.keep", "references.threshold"),
            *("privacy", "bucket", "corpus", "keep_dropped"),
        ),
        optional=(("near", "near.threshold"), ("references", "references.dumps")),
    ),
    Spec(
        "sources",
        "writes the documents of LLaMA's other sources, where sources.files names any",
        (),
        (
            *("sources.quality", "sources.licences", "sources.max_line", "sources.mean_line", "sources.alphanumeric"),
            *("sources.overlap", "quality.bad_words", "quality.evaluations", "privacy", "keep_dropped"),
        ),
        ("quality.bad_words", "quality.evaluations"),
        choices=("sources.files", "sources.split_bytes"),
        always=True,
    ),
    Spec(
        "tokenizer",
        "trains LLaMA's SentencePiece BPE on the corpus, or takes tokenizer.model",
        ("regroup", "sources"),
        ("tokenizer", "tokenize.buckets", "tokenize.sources", "mixture.shares"),
        ("tokenizer.model",),
        optional=(("sources", "sources.files"),),
    ),
    Spec(
        "tokenize",
        "writes token shards by source, and a fixed validation split of each",
        ("regroup", "sources", "tokenizer"),
        ("tokenize",),
        optional=(("sources", "sources.files"),),
        always=True,
    ),
    Spec(
        "train",
        "pretrains the model with DeepSpeed",
        ("tokenizer", "tokenize"),
        ("model", "train", "zero", "mixture"),
        how=HOW,
        folder="train",
        here=True,
    ),
    Spec(
        "evaluate",
        "validation perplexity by source before and after training",
        ("tokenizer", "tokenize", "train"),
        ("evaluate",),
    ),
    Spec("export", "writes the model in Hugging Face format and compares it there", ("tokenizer", "train"), ()),
    Spec("report", "one HTML page on the crawl, the corpus and the training", (), (), choices=("report",), always=True),
)
SPECS = {spec.name: spec for spec in _SPECS}
