"""dedup over snapshots: in one run, and in one run after the other with `dedup.seen`."""

import random
import shutil
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
from wet_files import write_wet

from ccnet.dedup import segment_offsets
from pipeline.__main__ import main
from pipeline.outputs import read_json, write_json

SNAPSHOTS = ("2023-06", "2023-14", "2023-23")


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory) -> Path:
    """Three snapshots of two segments, whose files have the same names in each."""
    folder = tmp_path_factory.mktemp("crawl")
    for n, snapshot in enumerate(SNAPSHOTS):
        (folder / snapshot).mkdir()
        for segment in range(2):
            letter = random.Random(10 * n + segment).choice
            lines = [f"line {letter(ascii_lowercase)}{letter(ascii_lowercase)}{i % 3 * 'x'}" for i in range(300)]
            pages = [(f"http://{i}/", "t", lines[i::60]) for i in range(60)]
            write_wet(folder / snapshot / f"{segment}.warc.wet.gz", pages)
    return folder


def run(
    folder: Path, out: Path, snapshots: tuple[str, ...], *overrides: str, stages: tuple[str, ...] = ("fetch", "hash", "dedup")
) -> int:
    files = ",".join(f"{folder / snapshot}/*.gz" for snapshot in snapshots)
    settings = [f"out={out}", f"crawl.files=[{files}]", "crawl.min_length=0", "executor.workers=1", *overrides]
    return max(main([stage, *settings]) for stage in stages)


def marks(out: Path) -> list[np.ndarray]:
    """The marks of each segment, partition after partition."""
    partition_keys = np.array([s["partition_keys"] for s in result(out, "hash")["segments"]])
    offsets = segment_offsets(partition_keys)
    files = [np.fromfile(out / f"dedup/{p:04d}.marks", np.uint8) for p in range(partition_keys.shape[1])]
    return [
        np.concatenate(
            [np.unpackbits(file[start:], count=count, bitorder="little") for file, start, count in zip(files, *of, strict=True)]
        )
        for of in zip(offsets, partition_keys, strict=True)
    ]


def result(out: Path, stage: str) -> dict:
    return read_json(out / f"records/{stage}.json")["result"]


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["first", "none"])
def test_snapshots_in_one_run_and_one_after_the_other(snapshots, tmp_path, keep):
    common = ("dedup.partitions=4", f"dedup.keep={keep}")
    assert run(snapshots, tmp_path / "all", SNAPSHOTS, *common) == 0
    assert [s["name"][:1] for s in result(tmp_path / "all", "hash")["segments"]] == [str(n % 2) for n in range(6)]
    assert run(snapshots, tmp_path / "a", SNAPSHOTS[:1], "dedup.partitions=16", f"dedup.keep={keep}") == 0
    assert run(snapshots, tmp_path / "b", SNAPSHOTS[1:2], "dedup.partitions=1", f"dedup.seen=[{tmp_path}/a]") == 0
    assert run(snapshots, tmp_path / "c", SNAPSHOTS[2:], *common, f"dedup.seen=[{tmp_path}/a,{tmp_path}/b]") == 0
    whole, last = marks(tmp_path / "all"), marks(tmp_path / "c")
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(last, whole[4:], strict=True))
    assert 0 < sum(segment.sum() for segment in last) < sum(map(len, last))
    counts = result(tmp_path / "c", "dedup")["statistics"]
    assert 0 < counts["seen"] < counts["distinct"] and counts["kept"] == sum(segment.sum() for segment in last)


@pytest.mark.slow
def test_the_most_frequent_paragraphs_do_not_depend_on_partitions(snapshots, tmp_path):
    for partitions in (1, 8):
        assert run(snapshots, tmp_path / str(partitions), SNAPSHOTS, f"dedup.partitions={partitions}") == 0
    one, eight = (result(tmp_path / str(partitions), "dedup")["frequent"] for partitions in (1, 8))
    assert one == eight and len(one) == 200
    assert one == sorted(one, key=lambda entry: (-entry[1], int(entry[0]))) and one[-1][1] >= 2


@pytest.mark.slow
def test_an_earlier_run_that_changed_is_read_again(snapshots, tmp_path):
    seen = f"dedup.seen=[{tmp_path}/a]"
    assert run(snapshots, tmp_path / "a", SNAPSHOTS[:1]) == 0
    assert run(snapshots, tmp_path / "b", SNAPSHOTS[1:2], seen) == 0
    before = result(tmp_path / "b", "dedup")["statistics"]["kept"]
    manifest = tmp_path / "b/records/dedup.json"
    written = manifest.stat().st_mtime_ns
    assert run(snapshots, tmp_path / "b", SNAPSHOTS[1:2], seen) == 0
    assert manifest.stat().st_mtime_ns == written
    assert run(snapshots, tmp_path / "a", (SNAPSHOTS[0], SNAPSHOTS[2]), "overwrite=true") == 0
    assert run(snapshots, tmp_path / "b", SNAPSHOTS[1:2], seen) == 0
    assert result(tmp_path / "b", "dedup")["statistics"]["kept"] < before


def test_a_folder_that_is_no_finished_run(snapshots, tmp_path, capsys):
    def error(seen: str) -> str:
        capsys.readouterr()
        assert run(snapshots, tmp_path / "b", SNAPSHOTS[1:2], f"dedup.seen=[{seen}]", stages=("dedup",)) == 1
        [line] = capsys.readouterr().err.strip().splitlines()
        return line

    assert run(snapshots, tmp_path / "a", SNAPSHOTS[:1], stages=("fetch", "hash")) == 0
    assert run(snapshots, tmp_path / "b", SNAPSHOTS[1:2], stages=("fetch", "hash")) == 0
    assert error(tmp_path / "none") == f"error: dedup: {tmp_path}/none has no finished hash: name the out of a run that has"
    assert "is this run's own out" in error(tmp_path / "a/../b")
    assert "name each run once" in error(f"{tmp_path}/a,{tmp_path}/a")
    shutil.copytree(tmp_path / "a", tmp_path / "cut")
    (tmp_path / "cut/hash/0.keys").unlink()
    assert "the hash of" in error(tmp_path / "cut")
    old = read_json(tmp_path / "a/records/hash.json") | {"format": 0}
    write_json(tmp_path / "a/records/hash.json", old)
    assert "of another version: run it there again" in error(tmp_path / "a")
