"""watch: a real process, asked over HTTP while real stages run."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from report_page import read_page
from road import ROOT, command, run_good

from pipeline.live import LivePage, Round, running_rounds
from pipeline.outputs import write_json
from pipeline.stage import unit_file

CHROMIUM = Path("/usr/bin/chromium")


@contextmanager
def watching(out, *settings):
    """A running `watch`; gives its port, ends it as Ctrl-C does."""
    started = [sys.executable, "-m", "pipeline", "watch", f"out={out}", "port=0", "every=1", *settings]
    process = subprocess.Popen(started, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ shows .*; end with Ctrl-C\n", line)
        assert found, line
        yield int(found[1])
        process.send_signal(signal.SIGINT)
        text, errors = process.communicate(timeout=60)
        assert (process.returncode, text, errors) == (0, "ended\n", "")
    finally:
        process.kill()
        process.wait()


def get(port, path="/", method="GET", **headers):
    """(status, headers, text) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def test_a_running_round_is_told_from_its_records(tmp_path):
    """3 of 10 units were done before, 2 more in 40 seconds."""
    records = tmp_path / "records" / "near"
    for name in ("a", "b", "c", "d", "e"):
        write_json(unit_file(records / "sign", name, ".json"), {})
    for name, suffix in (("f", ".error"), ("g", ".pending")):
        write_json(unit_file(records / "sign", name, suffix), [])
    write_json(records / "config.json", {})
    assert running_rounds(tmp_path) == {"near": [Round("sign", 5, None, 1, None, None)]}
    write_json(records / "sign.plan", {"units": 10, "missing": 7, "begun": 1000})
    (records / "link").mkdir()
    for n, part in enumerate((records / "sign").iterdir()):
        os.utime(part, (1040 - n, 1040 - n))
    [sign, link] = running_rounds(tmp_path)["near"]
    assert sign == Round("sign", 5, 10, 1, 2 / 40, 100.0)
    assert link == Round("link", 0, None, 0, None, None)
    write_json(tmp_path / "records" / "near.json", {})
    assert running_rounds(tmp_path) == {}


def test_a_page_is_made_once_in_a_while_and_kept_where_records_vanish(tmp_path):
    (tmp_path / "train").mkdir()
    rows = [{"step": s, "tokens": s, "loss": 8.0, "lr": 0.1, "grad_norm": 1.0, "seconds": 2.0} for s in (1, 2)]
    rows = [row | {"tokens_per_second": 50.0} for row in rows]
    metrics = tmp_path / "train/metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(tmp_path / "train/job.json", {"train": {"steps": 10}})
    write_json(tmp_path / "records/train/config.json", {})
    page = LivePage(tmp_path, every=3600)
    first = page.text()
    assert read_page(first).tables["now"][1:] == [["train", "2", "10", "0", "50 tokens a second", "16 s"]]
    metrics.write_text("")
    assert page.text() == first
    page = LivePage(tmp_path, every=0)
    assert read_page(page.text()).tables["now"][1:] == [["train", "0", "", "0", "", ""]]
    metrics.write_text("{\n")
    assert read_page(page.text()).tables["now"][1:] == [["train", "0", "", "0", "", ""]]


def test_only_the_page_and_only_this_machine(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "secret.txt").write_text("secret")
    with watching(out) as port:
        status, headers, text = get(port)
        assert status == 200 and "<!doctype html>" in text.lower() and "secret" not in text
        assert headers["Content-Security-Policy"].startswith("default-src 'none'") and headers["Cache-Control"] == "no-store"
        assert get(port, "/?x=1")[0] == get(port, Host=f"localhost:{port}")[0] == get(port, Host="LOCALHOST:9000")[0] == 200
        for host in ("evil.example", f"evil.example:{port}", "", "127.0.0.1.evil.example", "x@evil.example", "[::1", "0.0.0.0"):
            status, _, text = get(port, Host=host)
            assert (status, text) == (421, "no such host"), host
        for path in ("/secret.txt", "/../secret.txt", "//etc/passwd", "/%2e%2e/etc/passwd", "/records/", "*"):
            status, _, text = get(port, path)
            assert (status, text) == (404, "no such page"), path
        assert get(port, method="HEAD")[::2] == (200, "")
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert get(port, method=method)[0] == 501
        with socket.create_connection(("127.0.0.1", port)) as silent, pytest.raises(ConnectionRefusedError):
            silent.sendall(b"GET / HTTP/1.0\r\n")  # holds nobody up
            assert get(port)[0] == 200
            socket.create_connection(("127.0.0.2", port)).close()
        taken = [sys.executable, "-m", "pipeline", "watch", f"out={out}", f"port={port}"]
        done = subprocess.run(taken, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and done.stderr.startswith(f"error: port={port}: ") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_stages_are_seen_while_they_run(tmp_path):
    out = tmp_path / "out"
    run_good("fetch", out, "crawl.demo_segments=6")
    seen = set()
    with watching(out) as port:
        process = subprocess.Popen(command("hash", out, "crawl.demo_segments=6", "executor.workers=1"), cwd=ROOT)
        while process.poll() is None:
            tables = read_page(get(port)[2]).tables
            seen |= {tuple(row[:2]) for row in tables.get("now", [])[1:]}
            time.sleep(0.2)
        assert process.returncode == 0
        deadline = time.monotonic() + 60
        while "now" in (tables := read_page(text := get(port)[2]).tables):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert {stage for stage, _ in seen} == {"hash"}
    manifest = json.loads((out / "records/hash.json").read_text())
    assert f">{manifest['result']['statistics']['pages_read']:,}<" in text
    assert [row[:2] for row in tables["work"][1:]] == [["fetch", "6"], ["hash", "6"]]


@pytest.mark.slow
def test_a_browser_loads_it_again_and_stays_where_it_is(tmp_path):
    """Steps of a training appear without a touch; what is on the screen does not move; nothing is said on the console."""
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip("no /usr/bin/chromium: apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright

    train = tmp_path / "train"
    train.mkdir()
    step = {"loss": 8.0, "lr": 0.1, "grad_norm": 1.0, "seconds": 2.0, "tokens_per_second": 50.0}

    def write(steps):
        lines = [json.dumps({"step": s, "tokens": s, **step}) + "\n" for s in range(1, steps + 1)]
        (train / "metrics.jsonl").write_text("".join(lines))

    write(10)
    write_json(train / "job.json", {"train": {"steps": 1000}})
    write_json(tmp_path / "records/train/config.json", {})
    with watching(tmp_path) as port, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page, told = chromium.new_page(viewport={"width": 1000, "height": 400}), []
        page.on("console", lambda message: told.append(message.text))
        page.goto(f"http://127.0.0.1:{port}/")
        page.evaluate("window.scrollTo(0, 700)")
        write(20)
        expect(page.locator("#figure-now tbody")).to_contain_text("20", timeout=60_000)
        page.wait_for_timeout(500)
        assert page.evaluate("window.scrollY") == 700
        assert [text for text in told if "favicon" not in text] == []
        chromium.close()
