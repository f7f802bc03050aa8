"""The rules on texts that a configuration names, for the stages that apply them."""

from collections.abc import Sequence
from pathlib import Path

from ccnet.quality import Rule, rules
from pipeline.config import QualityConfig
from pipeline.stage import expand_files, fingerprint


def quality_rules(config: QualityConfig, names: Sequence[str]) -> list[Rule]:
    """The rules of these names with the files of the group `quality`."""
    return rules(names, Path(config.bad_words) if config.bad_words else None, expand_files(config.evaluations))


def quality_prints(config: QualityConfig) -> dict[str, str]:
    """{file: fingerprint} of what the rules read."""
    files = [*([config.bad_words] if config.bad_words else []), *expand_files(config.evaluations)]
    return {file: fingerprint(file)[1] for file in files}
