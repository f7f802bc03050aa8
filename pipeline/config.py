"""Configuration: the dataclasses that Hydra checks, and the way from the command line to a `Config`.

In: overrides (`key=value`) and the YAML groups of `conf/`. Out: a `Config`, every key known, typed and in range, or one
`ValueError` of one line. The YAML files hold values only; names, types, help and ranges stand here (and, for the model
and its training, beside the code that uses them: `model.config`, `pipeline.training.settings`).
"""

import copy
import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ccnet.buckets import BUCKETS
from jobs.executor import EXECUTORS, Resources
from model.config import LlamaConfig
from pipeline.training.devices import GPUS, find_gpu
from pipeline.training.settings import MixtureConfig, TrainConfig, ZeroConfig

QUALITY_RULES = ("c4", "gopher", "fineweb", "evaluations")  # of `ccnet.quality.rules`
PRIVACY = ("email", "ip", "phone")  # of `ccnet.privacy`


def key(default: Any, help: str) -> Any:
    """A configuration key: its default value and one line of help."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def words(help: str) -> Any:
    """A key of a command that takes the arguments which are no settings, as a list of strings."""
    return field(default_factory=list, metadata={"help": help, "words": True})


def require(condition: bool, message: str) -> None:
    """Raises `ValueError(message)` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_partitions(name: str, partitions: int) -> None:
    """Raises `ValueError` unless `partitions` is a power of two from 1 to 4096."""
    power = partitions > 0 and partitions & (partitions - 1) == 0
    require(power and partitions <= 4096, f"{name}={partitions}: choose a power of 2 up to 4096")


@dataclass
class CrawlConfig:
    """Where the pages come from."""

    kind: str = key(
        "local", "local: the files named in crawl.files; common_crawl: snapshots; demo: a crawl written on the spot"
    )
    files: list[str] = key(
        [], "paths, globs, folders or URLs, in crawl order: WET, WARC, JSON lines, Parquet; - is standard input"
    )
    text_column: str = key(
        "text", "where the text is in JSON lines and Parquet; url or id, date and title are taken where present"
    )
    split_bytes: int = key(256 << 20, "larger local files are shared by several workers, in parts of about so many bytes")
    dump: list[str] = key([], "snapshots of Common Crawl, in order, such as [CC-MAIN-2024-10]")
    segments: list[str] = key([], "which files of each snapshot's list: numbers and slices such as [7,100:200]; empty: all")
    content: str = key("wet", "which files of a snapshot: wet: text; warc: HTML, whose main text is extracted here")
    root: str = key("https://data.commoncrawl.org/", "where Common Crawl's files are; or s3://commoncrawl/")
    download: bool = key(True, "keep a snapshot's files below out/crawl; false: every stage that reads them fetches them anew")
    connections: int = key(4, "files that fetch downloads at a time, at most")
    min_length: int = key(300, "characters; shorter pages are dropped before anything else, as CCNet does")
    demo_segments: int = key(8, "segments of the demo crawl")
    demo_share: float = key(1.0, "share of the installed modules whose documentation becomes the demo crawl")

    def __post_init__(self) -> None:
        kinds = ("local", "common_crawl", "demo")
        require(self.kind in kinds, f"crawl.kind={self.kind}: choose from {', '.join(kinds)}")
        require(not self.files or self.kind == "local", f"crawl.files={self.files}: only for crawl=local")
        require(not self.dump or self.kind == "common_crawl", f"crawl.dump={self.dump}: only for crawl=common_crawl")
        require(len(set(self.dump)) == len(self.dump), f"crawl.dump={self.dump}: names a snapshot twice")
        require(bool(self.text_column), "crawl.text_column is empty: name the column of the text")
        require(self.split_bytes >= 1 << 20, f"crawl.split_bytes={self.split_bytes}: choose 1048576 or more")
        require(self.content in ("wet", "warc"), f"crawl.content={self.content}: choose wet or warc")
        require("://" in self.root, f"crawl.root={self.root}: choose a URL")
        require(1 <= self.connections <= 64, f"crawl.connections={self.connections}: choose 1 to 64")
        require(self.min_length >= 0, f"crawl.min_length={self.min_length}: choose 0 or more")
        require(1 <= self.demo_segments <= 1000, f"crawl.demo_segments={self.demo_segments}: choose 1 to 1000")
        require(0 < self.demo_share <= 1, f"crawl.demo_share={self.demo_share}: choose a share in (0, 1]")


@dataclass
class DedupConfig:
    """Paragraph deduplication over all segments."""

    keep: str = key("first", "first: the first copy in crawl order stays; none: every copy goes, as in released CCNet")
    partitions: int = key(16, "hash partitions, a power of 2; memory is that of one partition's keys")
    seen: list[str] = key([], "out folders of earlier runs; paragraphs that they hashed count as earlier copies")
    min_length: int = key(0, "characters; documents shorter than this after deduplication are dropped")

    def __post_init__(self) -> None:
        require(self.keep in ("first", "none"), f"dedup.keep={self.keep}: choose first or none")
        require_partitions("dedup.partitions", self.partitions)
        require(len(set(self.seen)) == len(self.seen), f"dedup.seen={self.seen}: name each run once")
        require(self.min_length >= 0, f"dedup.min_length={self.min_length}: choose 0 or more")


@dataclass
class NearConfig:
    """Near-duplicate documents."""

    threshold: float | None = key(None, "Jaccard index of word 5-grams from which on documents are near-duplicates, e.g. 0.8")
    partitions: int = key(16, "hash partitions, a power of 2; memory is about 1,300 bytes a document divided by them")

    def __post_init__(self) -> None:
        good = self.threshold is None or 0.5 <= self.threshold <= 1
        require(good, f"near.threshold={self.threshold}: choose 0.5 to 1, or null to keep near-duplicates")
        require_partitions("near.partitions", self.partitions)


@dataclass
class ReferencesConfig:
    """Pages like those that Wikipedia cites."""

    dumps: list[str] = key(
        [], "paths or globs of Wikipedia dumps (pages-articles XML); in their languages pages unlike those that they cite go"
    )
    match: str = key(
        "page", "page: the cited pages themselves are what documents are compared with; host: all pages of their hosts"
    )
    examples: int = key(300_000, "cited pages to learn a language from, at most, and as many others")
    threshold: float | None = key(None, "documents that score less go; null: what separates held-out pages best (F1)")

    def __post_init__(self) -> None:
        require(self.match in ("page", "host"), f"references.match={self.match}: choose page or host")
        require(self.examples >= 100, f"references.examples={self.examples}: choose 100 or more")
        good = self.threshold is None or 0 <= self.threshold <= 1
        require(good, f"references.threshold={self.threshold}: choose a score from 0 to 1, or null")


@dataclass
class LanguageConfig:
    """Language identification."""

    model: str | None = key(None, "a fastText language model; default: the lid.176.ftz that `make setup` installed")
    whole: bool = key(False, "look at all of a text, as CCNet does; else at its beginning where that is clear")
    mine: list[str] = key([], "languages to train models for, to score and to hold in mine/; empty: all")
    threshold: float = key(0.5, "documents whose language scores less are not in the corpus")
    keep: list[str] = key([], "languages of the corpus, as fastText names them; empty: all")

    def __post_init__(self) -> None:
        require(0 <= self.threshold <= 1, f"language.threshold={self.threshold}: choose a score from 0 to 1")


@dataclass
class LmConfig:
    """Language models for the perplexity of documents: trained on held-out pages unless `dir`, `text` or `url` is given."""

    dir: str | None = key(None, "folder of {language}.sp.model and {language}.arpa.bin")
    text: list[str] = key(
        [],
        "paths or globs to train on: {language}.txt or {language}.NAME.txt (also .gz, .bz2; a document ends at an empty line);"
        " all other names are Wikipedia dumps (pages-articles XML or CirrusSearch JSON), which name their language",
    )
    url: str | None = key(None, "where CCNet's released models lie (lm=ccnet); those of language.mine are downloaded")
    format: str = key("probing", "KenLM structure of trained models; probing: fast, as CCNet; trie: small")
    held_out: float = key(0.1, "share of the pages kept out of the corpus; the clean ones of them train the models")
    min_bytes: int = key(200_000, "languages with less clean held-out text get no model (their bucket is `all`)")
    vocab_size: int = key(65536, "SentencePiece pieces; lowered to what the text allows")
    order: int = key(5, "n-gram order")

    def __post_init__(self) -> None:
        given = [name for name in ("dir", "text", "url") if getattr(self, name)]
        require(len(given) <= 1, f"lm.{given[0]} and lm.{given[-1]}: choose one" if given else "")
        require(
            self.url is None or self.url.startswith(("http://", "https://")), f"lm.url={self.url}: choose an http(s) address"
        )
        require(self.format in ("probing", "trie"), f"lm.format={self.format}: choose probing or trie")
        require(0 < self.held_out < 1, f"lm.held_out={self.held_out}: choose a share between 0 and 1")
        require(self.min_bytes >= 1000, f"lm.min_bytes={self.min_bytes}: choose 1000 or more")
        require(self.vocab_size >= 100, f"lm.vocab_size={self.vocab_size}: choose 100 or more")
        require(2 <= self.order <= 6, f"lm.order={self.order}: choose 2 to 6")


@dataclass
class BucketConfig:
    """Perplexity buckets and the files of the corpus."""

    cutoffs: str = key(
        "computed",
        "computed: from the documents' perplexities; released: CCNet's, which need its released models (lm=ccnet);"
        " languages without any have the bucket `all`",
    )
    percentiles: list[float] = key([30.0, 60.0], "head lies below the first percentile of perplexity, middle below the second")
    part_bytes: int = key(256 << 20, "text per Parquet file, about")

    def __post_init__(self) -> None:
        require(self.cutoffs in ("computed", "released"), f"bucket.cutoffs={self.cutoffs}: choose computed or released")
        good = len(self.percentiles) == 2 and 0 < self.percentiles[0] < self.percentiles[1] < 100
        require(good, f"bucket.percentiles={self.percentiles}: choose two rising percentiles between 0 and 100")
        require(self.part_bytes >= 1 << 16, f"bucket.part_bytes={self.part_bytes}: choose 65536 or more")

    def check_models(self, trained: bool) -> None:
        """Raises `ValueError` where the released cut-offs would be applied to models that the run trained itself."""
        require(
            self.cutoffs != "released" or not trained,
            "bucket.cutoffs=released: that table holds for CCNet's released models, not for those that a run trains:"
            " take them with lm=ccnet or from lm.dir, or choose bucket.cutoffs=computed",
        )


@dataclass
class CorpusConfig:
    """The files of the corpus."""

    layout: str = key("parquet", "parquet: {language}/{bucket}/part-*.parquet; ccnet: {language}_{bucket}_{n}.json.gz")
    rounded: bool = key(False, "language scores have 2 decimals and perplexities 1, before they are compared, as in CCNet")

    def __post_init__(self) -> None:
        require(self.layout in ("parquet", "ccnet"), f"corpus.layout={self.layout}: choose parquet or ccnet")


@dataclass
class RegenerateConfig:
    """A corpus again from its metadata."""

    metadata: str | None = key(None, "the folder mine/metadata of the run whose documents are wanted, or a copy of it")


@dataclass
class SourcesConfig:
    """LLaMA's sources beside the crawl."""

    files: dict[str, list[str]] = key(
        {},
        "{source: what it is read from}: c4: JSON lines, Parquet or datasets:NAME[:CONFIG[:SPLIT]]; wikipedia: dumps;"
        " github: Parquet or JSON lines of files, or folders of git repositories; books: text files or folders of them",
    )
    split_bytes: int = key(256 << 20, "bytes of a unit, about: larger local files are cut where they can be")
    quality: dict[str, list[str]] = key({}, "{source: the rules of the group quality that its documents must pass}")
    licences: list[str] = key(["mit", "bsd", "apache"], "GitHub: families of licences that stay; all of a repository's must")
    max_line: int = key(1000, "GitHub: characters; files with a longer line are dropped")
    mean_line: float = key(100.0, "GitHub: characters; files whose lines are longer on average are dropped")
    alphanumeric: float = key(0.25, "GitHub: files with a smaller share of letters and digits are dropped")
    overlap: float = key(0.9, "books that share more than this of their word 5-grams with an earlier one are dropped")

    def __post_init__(self) -> None:
        for source, files in self.files.items():
            require(bool(files), f"sources.files.{source}=[]: name the source's files")
        require(self.split_bytes >= 1 << 20, f"sources.split_bytes={self.split_bytes}: choose 1048576 or more")
        require(bool(self.licences), "sources.licences=[]: name one family at least")
        require(self.max_line > 0, f"sources.max_line={self.max_line}: choose 1 or more")
        require(self.mean_line > 0, f"sources.mean_line={self.mean_line}: choose more than 0")
        require(0 <= self.alphanumeric <= 1, f"sources.alphanumeric={self.alphanumeric}: choose a share from 0 to 1")
        require(0.67 <= self.overlap <= 1, f"sources.overlap={self.overlap}: choose 0.67 to 1")


@dataclass
class QualityConfig:
    """Rules on the text of documents."""

    rules: list[str] = key(
        [],
        "rules that the crawl's documents must pass, in turn: c4 (arXiv 1910.10683, section 2.2), gopher (2112.11446, table"
        " A1), fineweb (2406.17557, section 3.6), evaluations (no 13 words in a row of quality.evaluations)",
    )
    languages: list[str] = key(["en"], "languages of the crawl to which they are applied; empty: all")
    bad_words: str | None = key(None, "file of words and phrases, one a line: c4 drops the documents that have one")
    evaluations: list[str] = key([], "paths or globs of evaluation sets: Parquet, JSON lines (all strings), or text")

    def __post_init__(self) -> None:
        unknown = [rule for rule in self.rules if rule not in QUALITY_RULES]
        require(not unknown, f"quality.rules={self.rules}: choose from {', '.join(QUALITY_RULES)}")


@dataclass
class PrivacyConfig:
    """Addresses of people in the texts of the crawl and of the other sources."""

    replace: list[str] = key([], "email, ip, phone: such addresses become ones that are reserved for examples")

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.replace if kind not in PRIVACY]
        require(not unknown, f"privacy.replace={self.replace}: choose from {', '.join(PRIVACY)}")


@dataclass
class TokenizerConfig:
    """The SentencePiece tokenizer of the model."""

    model: str | None = key(None, "an existing SentencePiece model; default: train one on the corpus")
    vocab_size: int = key(32000, "pieces")
    sample_chars: int = key(1 << 30, "characters to train on, about; of each source its share in mixture.shares, drawn evenly")

    def __post_init__(self) -> None:
        require(300 <= self.vocab_size <= 1 << 20, f"tokenizer.vocab_size={self.vocab_size}: choose 300 to 1048576")
        require(self.sample_chars >= 10_000, f"tokenizer.sample_chars={self.sample_chars}: choose 10000 or more")


@dataclass
class TokenizeConfig:
    """From the corpus to token shards."""

    buckets: list[str] = key(["head", "middle", "all"], "perplexity buckets to train on (all: languages without a model)")
    sources: dict[str, list[str]] = key(
        {}, "{source: paths, globs or URLs of Parquet or JSON lines with raw_content or text}, beside the source crawl"
    )
    shard_bytes: int = key(1 << 30, "text per token shard, about; larger files are cut between row groups")
    validation: float = key(0.01, "share of the documents of each source that are kept for validation, chosen by their digest")

    def __post_init__(self) -> None:
        bad = sorted(set(self.buckets) - set(BUCKETS))
        require(bool(self.buckets) and not bad, f"tokenize.buckets={self.buckets}: choose from {', '.join(BUCKETS)}")
        for source, files in self.sources.items():
            named = re.fullmatch(r"[a-z0-9][a-z0-9_-]*", source) is not None and source != "crawl"
            require(named, f"tokenize.sources: {source!r}: choose a name of a-z, 0-9, - and _, not crawl, which is the corpus")
            require(bool(files), f"tokenize.sources.{source}=[]: name the source's files")
        require(self.shard_bytes >= 1 << 16, f"tokenize.shard_bytes={self.shard_bytes}: choose 65536 or more")
        require(0 < self.validation < 1, f"tokenize.validation={self.validation}: choose a share between 0 and 1")


@dataclass
class EvaluateConfig:
    """Validation of the trained model."""

    prompt: str = key("This function returns", "a text that the trained model goes on from")

    def __post_init__(self) -> None:
        require(bool(self.prompt.strip()), "evaluate.prompt is empty: give a few words")


@dataclass
class ReportConfig:
    """The page on a run."""

    samples: int = key(3, "pages shown of each language and bucket, and of each reason to be dropped; 0: none")
    seed: int = key(1, "which pages these are")
    against: str | None = key(None, "the out of another run, to be compared with this one")

    def __post_init__(self) -> None:
        require(0 <= self.samples <= 100, f"report.samples={self.samples}: choose 0 to 100")


@dataclass
class PlanConfig:
    """What `plan` reckons with."""

    gpu: str = key("A100", f"model of the GPUs: {', '.join(GPUS)}")
    gpus: int = key(0, "how many; 0: train.processes")
    memory: float = key(0.0, "GB (of 10^9 bytes) that a run may take on each; 0: nine tenths of what plan.gpu has")
    mfu: float = key(0.5, "share of the peak that training reaches, e.g. the mfu that a short run measured")
    tokens: dict[str, int] = key({}, "{source: tokens}, where out has none yet")

    def __post_init__(self) -> None:
        require(find_gpu(self.gpu) is not None, f"plan.gpu={self.gpu}: choose from {', '.join(GPUS)}")
        require(self.gpus >= 0, f"plan.gpus={self.gpus}: choose 0 or more")
        require(self.memory >= 0, f"plan.memory={self.memory}: choose 0 or more")
        require(0 < self.mfu <= 1, f"plan.mfu={self.mfu}: choose a share in (0, 1]")
        for source, tokens in self.tokens.items():
            require(tokens > 0, f"plan.tokens.{source}={tokens}: choose a positive number")


@dataclass
class ExecutorConfig:
    """Where units run."""

    kind: str = key("local", "local: processes of this machine; slurm: job arrays; ray: tasks of a Ray cluster")
    workers: int = key(2, "processes of this machine, or tasks of the cluster, that work at a time, at most")
    attempts: int = key(3, "a unit whose worker died, or that had an unexpected error, is tried so often")
    resources: Resources = field(default_factory=Resources)
    stages: dict[str, dict[str, Any]] = key({}, "{stage: what its tasks need}, where that is not what executor.resources says")
    controller: dict[str, Any] = key({}, "what a stage's own process needs, which plans the units and sends them out")

    def __post_init__(self) -> None:
        require(self.kind in EXECUTORS, f"executor.kind={self.kind}: choose from {', '.join(EXECUTORS)}")
        require(1 <= self.workers <= 100_000, f"executor.workers={self.workers}: choose 1 to 100000")
        require(1 <= self.attempts <= 100, f"executor.attempts={self.attempts}: choose 1 to 100")
        _resources("controller", self.controller)
        for stage, needs in self.stages.items():
            _resources(f"stages.{stage}", needs)

    def needs(self, stage: str) -> Resources:
        """What a task of a stage needs."""
        shared = self.resources.over(Resources(workers=self.workers))
        return _resources(f"stages.{stage}", self.stages.get(stage, {})).over(shared)

    def own_process(self) -> Resources:
        """What the process of a stage needs that sends its units to others."""
        return _resources("controller", self.controller).over(self.resources)


@dataclass
class Config:
    """Everything a run is a function of."""

    out: str = key("out", "root folder of the outputs (a file system; its stages' folders are made there)")
    stages: list[str] = key([], "the stages that `all` runs, in order; an experiment names them")
    overwrite: bool = key(False, "replace outputs that were made with another configuration")
    max_bad_fraction: float = key(0.05, "a stage fails when more than this share of its records is bad")
    keep_dropped: bool = key(False, "write what mine, regroup and sources drop, with the reason, to dropped/")
    max_removed: float = key(0.98, "a stage stops when it removes more than this share of the characters")
    crawl: CrawlConfig = field(default_factory=CrawlConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    near: NearConfig = field(default_factory=NearConfig)
    references: ReferencesConfig = field(default_factory=ReferencesConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    lm: LmConfig = field(default_factory=LmConfig)
    bucket: BucketConfig = field(default_factory=BucketConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    regenerate: RegenerateConfig = field(default_factory=RegenerateConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    model: LlamaConfig = field(default_factory=LlamaConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)

    def __post_init__(self) -> None:
        require("://" not in self.out, f"out={self.out}: outputs need a file system with rename; inputs may be URLs")
        require(
            self.lm.url is None or bool(self.language.mine),
            "lm.url: name the languages whose models are to be downloaded, e.g. language.mine=[en,de]",
        )
        for source in self.sources.files.keys() & self.tokenize.sources.keys():
            raise ValueError(f"tokenize.sources.{source}: sources.files names that source too; choose one")
        for source, rules in self.sources.quality.items():
            unknown = [rule for rule in rules if rule not in QUALITY_RULES]
            require(not unknown, f"sources.quality.{source}={rules}: choose from {', '.join(QUALITY_RULES)}")
        named = {rule for rules in (self.quality.rules, *self.sources.quality.values()) for rule in rules}
        require(
            "evaluations" not in named or bool(self.quality.evaluations),
            "quality.evaluations is empty: name the files that the rule evaluations is about",
        )
        require(0 <= self.max_bad_fraction <= 1, f"max_bad_fraction={self.max_bad_fraction}: choose a share from 0 to 1")
        require(0 < self.max_removed <= 1, f"max_removed={self.max_removed}: choose a share in (0, 1]")
        if "train" in self.stages:  # before days of other stages
            self.check_training(0 if self.tokenizer.model else self.tokenizer.vocab_size)

    def check_training(self, pieces: int) -> None:
        """Raises `ValueError` for a model, a tokenizer of so many pieces and a training that don't fit together."""
        model, train = self.model, self.train
        train.accumulation(train.processes)
        require(
            train.dtype == "fp32" or self.zero.stage > 0,
            "zero=0: train.dtype=bf16 needs ZeRO's master weights; choose zero=1, 2 or 3",
        )
        require(
            model.vocab_size >= pieces, f"model.vocab_size={model.vocab_size}: too small for the tokenizer's {pieces} pieces"
        )
        require(
            model.max_sequence >= train.sequence,
            f"train.sequence={train.sequence}: the model takes at most model.max_sequence={model.max_sequence}",
        )


def load(overrides: Sequence[str]) -> Config:
    """Composes `conf/config.yaml` with `overrides`; raises `ValueError` with one line for any mistake in them."""
    ConfigStore.instance().store(name="schema", node=Config)
    GlobalHydra.instance().clear()
    quoted = [re.sub(r"^zero=(\d)$", r"zero='\1'", override) for override in overrides]  # Hydra takes group names as text only
    open_keys = "|".join(re.escape(name) for name, value in flatten(Config()).items() if isinstance(value, dict))
    quoted = [re.sub(rf"^({open_keys})\b", r"++\1", override) for override in quoted]  # whose entries may be new
    try:
        with initialize_config_module("conf", version_base="1.3"):
            config = OmegaConf.to_object(compose("config", quoted))
    except OverrideParseException as error:
        raise ValueError(f"{error.override}: {_one_line(error)}; a setting is key=value") from None
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_one_line(error)) from None
    assert isinstance(config, Config)
    return config


def load_settings(kind: type[Any], arguments: Sequence[str]) -> Any:
    """A dataclass of plain values from `key=value`, `--key` for `key=true`, and words, which are those of the key that `words`
    made, in their order. A word is whatever begins unlike a setting. Raises `ValueError` with one line for any mistake in them.
    """
    settings = OmegaConf.structured(kind)
    worded = [f.name for f in dataclasses.fields(kind) if f.metadata.get("words")]
    said: list[str] = []
    for argument in arguments:
        if flag := re.fullmatch(r"--(\w+)", argument):
            name, equals, value = flag[1], "=", "true"
        else:
            name, equals, value = argument.partition("=")
        if worded and not (equals and re.fullmatch(r"\w+", name)):
            said.append(argument)
            continue
        if not equals:
            raise ValueError(f"{argument}: a setting is key=value")
        if name not in settings or name in worded:
            near = difflib.get_close_matches(name, list(settings), n=1)
            raise ValueError(f"{name}: no such key; {f'did you mean {near[0]}?' if near else '--help lists the keys'}")
        try:
            settings[name] = OmegaConf.create(value) if OmegaConf.is_list(settings[name]) else value
        except OmegaConfBaseException as error:
            raise ValueError(_one_line(error)) from None
    made = OmegaConf.to_object(settings)
    for name in worded:
        setattr(made, name, said)  # as they are: `${…}` in them is no reference to another key
    return made


def _resources(name: str, needs: dict[str, Any]) -> Resources:
    """Those that the key `executor.{name}` holds; raises `ValueError` for a key or a value that is none."""
    try:
        resources = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Resources), needs))
    except (OmegaConfBaseException, ValueError) as error:
        unknown = sorted(needs.keys() - flatten(Resources()).keys())
        problem = f"{unknown[0]}: no such key" if unknown else _one_line(error)
        raise ValueError(f"executor.{name}: {problem}") from None
    assert isinstance(resources, Resources)
    return resources


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A dataclass of dataclasses as {"dedup.keep": "first", …}, in the order of the fields."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(value):
        item, name = getattr(value, f.name), f"{prefix}{f.name}"
        flat.update(flatten(item, f"{name}.") if dataclasses.is_dataclass(item) else {name: item})
    return flat


def describe(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(key, value, help) of every key below `value`."""
    for f in dataclasses.fields(value):
        item, name = getattr(value, f.name), f"{prefix}{f.name}"
        if dataclasses.is_dataclass(item):
            yield from describe(item, f"{name}.")
        else:
            yield name, item, f.metadata["help"]


def _one_line(error: Exception) -> str:
    """The telling line of Hydra's and OmegaConf's messages, with the nearest known key where one was mistyped."""
    lines = [line.strip() for text in (error, error.__cause__) if text for line in str(text).splitlines()]
    if unknown := re.match(r"Could not override '([^']+)'", lines[0]):
        near = difflib.get_close_matches(unknown[1], list(flatten(Config())), n=1)
        return f"{unknown[1]}: no such key; {f'did you mean {near[0]}?' if near else '--help lists the keys of a stage'}"
    if full_key := next((line for line in lines if line.startswith("full_key:")), None):
        return f"{full_key.removeprefix('full_key: ')}: {lines[lines.index(full_key) - 1]}"
    if missing := re.search(r"Could not find '([^']+)'", lines[0]):
        return f"{missing[1]}: no such choice; there are {', '.join(_choices(lines))}"
    return "; ".join(line for line in lines if line and not line.startswith("See https"))


def _choices(lines: Sequence[str]) -> list[str]:
    start = next(n for n, line in enumerate(lines) if line.startswith("Available options"))
    end = next(n for n, line in enumerate(lines) if line.startswith("Config search path"))
    return list(lines[start + 1 : end])
