"""The stage contract, on a small stage of its own: finished units stay, others never count."""

import contextlib
import os
from collections import Counter
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.outputs import digest_file, read_json, write_json
from pipeline.stage import Spec, Stage, StageError, Unit, expand_files, fingerprint, unit_file

SPEC = Spec("mine", "copies", (), ("dedup.keep",))


def copy(outputs, source: str, log: str, mode: str = "") -> dict:
    with Path(log).open("a") as file:
        file.write(f"{Path(source).name}\n")
    data = Path(source).read_bytes()
    outputs.path(f"copies/{Path(source).name}").write_bytes(data)
    if mode == "mistake":
        raise ValueError("the model is no model")
    if mode == "bug":
        raise KeyError("oops")
    if mode == "full":
        raise OSError(28, "No space left on device")
    if mode == "flaky" and Path(log).read_text().split().count(Path(source).name) < 3:
        raise OSError(116, "Stale file handle")
    outputs.path("copies/never-written")
    return {"bytes": len(data)}


@pytest.fixture
def sources(tmp_path):
    for n in range(4):
        (tmp_path / f"in-{n}").write_bytes(b"x" * n)
    return tmp_path


def units_of(folder: Path, numbers=range(4), modes=None):
    return [
        Unit(
            f"u{n}",
            {"source": str(folder / f"in-{n}"), "log": str(folder / "log"), "mode": (modes or {}).get(n, "")},
            {"source": digest_file(folder / f"in-{n}")},
            n,
        )
        for n in numbers
    ]


@contextlib.contextmanager
def open_stage(folder: Path, *overrides: str):
    stage = Stage(SPEC, load([f"out={folder / 'out'}", *overrides]))
    with stage.opened():
        yield stage


def run(folder: Path, *overrides: str, numbers=range(4), modes=None):
    with open_stage(folder, *overrides) as stage:
        records = stage.map("mine", copy, units_of(folder, numbers, modes))
        stage.finish({"bytes": sum(record.statistics["bytes"] for record in records)})
        return records


def done(folder: Path) -> list[str]:
    return sorted((folder / "log").read_text().split())


def copies(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out" / "copies").iterdir()}


def test_units_are_done_once(sources):
    first = run(sources)
    assert [record.unit for record in first] == ["u0", "u1", "u2", "u3"]
    assert first[2].outputs == {"copies/in-2": {"bytes": 2, "digest": digest_file(sources / "in-2")}}
    assert copies(sources) == {f"in-{n}": b"x" * n for n in range(4)}
    assert run(sources) == first
    assert done(sources) == ["in-0", "in-1", "in-2", "in-3"]
    with open_stage(sources) as stage:
        assert stage.is_finished()
    assert not (sources / "out" / "tmp" / "mine").exists()


def test_a_changed_input_and_a_lost_file_are_done_again_and_only_they(sources):
    run(sources)
    (sources / "in-1").write_bytes(b"other")
    (sources / "out" / "copies" / "in-3").unlink()
    with open_stage(sources) as stage:
        assert not stage.is_finished()
    run(sources)
    assert done(sources) == ["in-0", "in-1", "in-1", "in-2", "in-3", "in-3"]
    assert copies(sources)["in-1"] == b"other"


def test_units_that_are_no_longer_planned_go_with_their_files(sources):
    run(sources)
    run(sources, numbers=range(2))
    assert set(copies(sources)) == {"in-0", "in-1"}
    assert sorted(p.name for p in (sources / "out/records/mine/mine").glob("*/*.json")) == ["u0.json", "u1.json"]


def test_another_configuration_stops_and_names_the_key(sources):
    run(sources)
    with pytest.raises(ValueError, match=r"mine: dedup.keep is 'none' now and was 'first'.*overwrite=true"):
        run(sources, "dedup.keep=none")
    assert len(copies(sources)) == 4
    run(sources, "dedup.keep=none", "overwrite=true", numbers=[2])
    assert set(copies(sources)) == {"in-2"}
    run(sources, "dedup.keep=none", numbers=[2])
    assert done(sources).count("in-2") == 2


@pytest.mark.parametrize(
    ("mode", "message"), [("mistake", "mine: u1: the model is no model"), ("full", "mine: u1: no space left below")]
)
def test_a_mistake_or_a_full_disk_ends_the_stage_and_finished_units_stay(sources, mode, message):
    run(sources, numbers=[0])
    with pytest.raises(StageError, match=message):
        run(sources, modes={1: mode})
    with open_stage(sources) as stage:
        assert not stage.is_finished()
    assert "in-0" in copies(sources) and "in-1" not in copies(sources)
    run(sources)
    assert done(sources).count("in-0") == 1
    assert len(copies(sources)) == 4


def test_an_unexpected_error_costs_its_unit_and_the_others_are_finished(sources):
    with pytest.raises(StageError, match=r"mine: 1 of 4 units failed, the others are done; u1: KeyError: 'oops' \(see "):
        run(sources, modes={1: "bug"})
    assert set(copies(sources)) == {"in-0", "in-2", "in-3"}
    assert "Traceback" in unit_file(sources / "out/records/mine/mine", "u1", ".error").read_text()
    assert done(sources).count("in-1") == 3
    run(sources)
    assert done(sources).count("in-2") == 1
    assert not unit_file(sources / "out/records/mine/mine", "u1", ".error").exists()


def test_a_unit_that_fails_twice_then_succeeds(sources):
    run(sources, modes={1: "flaky"})
    assert [done(sources).count(f"in-{n}") for n in range(4)] == [1, 3, 1, 1]
    assert len(copies(sources)) == 4 and not list((sources / "out/records").rglob("*.error"))


def test_attempts_are_a_choice(sources):
    with pytest.raises(StageError, match=r"1 of 4 units failed, the others are done; u1: OSError: .*Stale file handle"):
        run(sources, "executor.attempts=2", modes={1: "flaky"})
    assert done(sources).count("in-1") == 2


def test_progress_is_seen_from_outside(sources):
    outside = Stage(SPEC, load([f"out={sources / 'out'}"]))
    assert outside.progress() == {"stage": "mine", "active": False, "rounds": []}
    run(sources, numbers=range(2))
    with pytest.raises(StageError):
        run(sources, modes={2: "bug"})
    progress = outside.progress()
    [of_round] = progress["rounds"]
    assert not progress["active"] and of_round.pop("begun") > 1.7e9
    assert of_round == {
        **{"round": "mine", "units": 4, "missing": 2, "done": 3, "running": 0},
        "failed": [str(unit_file(sources / "out/records/mine/mine", "u2", ".error"))],
    }
    with open_stage(sources):
        assert outside.progress()["active"]


def test_an_array_that_a_killed_process_left_is_not_ignored(sources, monkeypatch):
    monkeypatch.setenv("PATH", "")
    left = sources / "out/jobs/mine/mine/1/job"
    left.parent.mkdir(parents=True)
    left.write_text("12")
    with pytest.raises(ValueError, match="jobs 12 of Slurm may still work on it: scancel: not found"), open_stage(sources):
        pass


def test_what_was_renamed_without_a_record_is_taken_back(sources):
    run(sources)
    records = sources / "out/records/mine/mine"
    write_json(unit_file(records, "u2", ".pending"), ["copies/in-2", "copies/not-yet"])
    unit_file(records, "u2", ".json").unlink()
    with open_stage(sources) as stage:
        stage.map("mine", copy, units_of(sources, [0]))
    assert set(copies(sources)) == {"in-0"}
    assert not list(records.rglob("*.pending"))


def test_the_files_of_90_000_units_lie_in_256_folders():
    names = [f"segment-{n:05d}" for n in range(90_000)]
    folders = Counter(unit_file(Path("mine"), name, ".json").parent for name in names)
    assert len(folders) == 256 and max(folders.values()) < 2 * 90_000 / 256


def test_the_manifest_digest_follows_the_files_alone(sources, tmp_path):
    run(sources)
    manifest = sources / "out/records/mine.json"
    first = read_json(manifest)
    manifest.unlink()
    run(sources, "executor.workers=1")
    assert read_json(manifest)["digest"] == first["digest"]
    (sources / "in-1").write_bytes(b"y")
    run(sources)
    assert read_json(manifest)["digest"] != first["digest"]


def test_two_processes_never_work_on_one_stage(sources):
    with open_stage(sources), pytest.raises(ValueError, match="another process works on it"), open_stage(sources):
        pass


def test_too_many_bad_records_fail(sources):
    with open_stage(sources, "max_bad_fraction=0.1") as stage:
        stage.check_bad({"truncated": 1}, 10)
        with pytest.raises(StageError, match=r"2 of 10 records are bad \(broken_record 1, truncated 1\)"):
            stage.check_bad({"truncated": 1, "broken_record": 1}, 10)


def test_a_stage_waits_for_those_it_reads(tmp_path):
    stage = Stage(Spec("dedup", "", ("hash",), ()), load([f"out={tmp_path}"]))
    with pytest.raises(ValueError, match="dedup reads what hash writes"), stage.opened():
        pass


def test_files_are_expanded_in_order(tmp_path):
    for name in ("b.wet", "a.wet", "c.txt"):
        (tmp_path / name).touch()
    found = expand_files([f"{tmp_path}/c.txt", f"{tmp_path}/*.wet", "https://host/x.wet"])
    assert [os.path.basename(path) for path in found] == ["c.txt", "a.wet", "b.wet", "x.wet"]
    with pytest.raises(ValueError, match=r"none\*: no such file"):
        expand_files([f"{tmp_path}/none*"])
    with pytest.raises(ValueError, match="named twice"):
        expand_files([f"{tmp_path}/a.wet", f"{tmp_path}/*.wet"])


def test_a_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("a")
    size, first = fingerprint(str(path))
    assert size == 1
    path.write_text("ab")
    assert fingerprint(str(path))[1] != first
    with pytest.raises(ValueError, match="no such file"):
        fingerprint(str(tmp_path / "missing"))
