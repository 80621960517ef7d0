"""A run's own account: images by status, who is busy, and run.json while it goes."""

import io
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from cropscore_ray import storage
from cropscore_ray.bulk import run_folder, run_progress
from cropscore_ray.bulk.run_progress import RunProgress, Work
from cropscore_ray.terminal import progress
from cropscore_ray.terminal.progress import Progress, Snapshot, duration


@pytest.fixture
def folder(tmp_path: Path) -> run_folder.RunFolder:
    return run_folder.open_run(str(tmp_path), table="predictions", identity={}, facts={})


def make(folder: run_folder.RunFolder, num_images: int | None = 10, before: int = 0) -> RunProgress:
    return RunProgress(
        folder=folder, ask_num_images=lambda: num_images, num_before=before, shows=[shown.append]
    )


shown: list[Snapshot] = []


@pytest.fixture(autouse=True)
def _everything_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown.clear()
    monkeypatch.setattr(run_progress, "_SHOW_S", -1.0)


def work(worker: str, num_images: int, busy_s: float = 1, idle_s: float = 0) -> Work:
    return Work(worker=worker, num_images=num_images, busy_s=busy_s, idle_s=idle_s)


def test_scored_images_run_ahead_of_written_ones_but_are_not_the_end(folder):
    made = make(folder, before=4)
    made.worked(work("a", 3))
    assert shown[-1].num_done == 7
    made.worked(work("a", 3))
    made.worked(work("b", 3))  # a part that is scored twice
    assert shown[-1].num_done == 9
    made.wrote({"ok": 6}, 6)
    assert shown[-1].num_done == 10


def test_not_every_word_of_a_worker_is_shown_but_the_end_is(folder, monkeypatch):
    monkeypatch.setattr(run_progress, "_SHOW_S", 3600.0)
    made = make(folder)
    for _ in range(8):
        made.worked(work("a", 1))
    assert len(shown) == 1
    made.wrote({"ok": 10}, 10)
    assert [one.num_done for one in shown] == [1, 10]


def test_who_is_busy_and_how_much(folder):
    made = make(folder)
    assert made.snapshot().busy is None
    made.worked(work("a", 0, busy_s=0, idle_s=3))
    made.worked(work("a", 1, busy_s=6))
    made.worked(work("b", 1, busy_s=3))
    assert (shown[-1].num_workers, shown[-1].busy) == (2, pytest.approx(0.75))
    assert shown[-1].gpu_use is None


def test_how_much_those_gpus_are_used_that_say_so(folder):
    made = make(folder)
    for worker, gpu_use in (("a", 1.0), ("a", 0.5), ("b", 0.9), ("c", None)):
        made.worked(
            Work(worker=worker, num_images=1, busy_s=1, idle_s=0, gpu_use=gpu_use),
        )
    assert shown[-1].gpu_use == pytest.approx(0.8)


def test_workers_that_tell_nothing_more_are_forgotten(folder, monkeypatch):
    made = make(folder)
    made.worked(work("a", 1))
    monkeypatch.setattr(run_progress, "_BUSY_S", -1.0)
    made.tick()
    assert (shown[-1].num_workers, shown[-1].busy) == (0, None)


def test_the_number_of_images_is_asked_for_until_it_is_known(folder):
    made = make(folder, num_images=None)
    made.worked(work("a", 3))
    assert (shown[-1].num_done, shown[-1].num_images) == (3, None)


def test_run_json_is_kept_while_the_run_goes_and_times_add_up(folder, monkeypatch):
    monkeypatch.setattr(run_progress, "_KEEP_S", 0.01)
    folder.update({"times": {**folder.record["times"], "wall_s": 100.0}})
    made = make(folder)
    made.wrote({"ok": 4}, 20, before=True)
    with made.kept():
        made.wrote({"ok": 2, "missing": 1}, 11)
        made.worked(work("a", 2))  # of a part that is not written
        found = kept(folder, images=7)  # though no other part is
        counts = {"images": 7, "rows": 31, "by_status": {"ok": 6, "missing": 1}}
        assert found["counts"] == counts
        assert (found["complete"], found["times"]["finished_at"]) == (False, None)
        assert 100 <= found["times"]["wall_s"] < 110
    made.complete()
    found = storage.read_json(f"{folder.uri}/run.json")
    assert found["complete"]
    assert (found["counts"], found["times"]["finished_at"] is None) == (counts, False)


def kept(folder, images):
    """Return run.json once it counts so many images."""
    deadline_s = time.monotonic() + 20
    while True:
        found = storage.read_json(f"{folder.uri}/run.json")
        if found["counts"].get("images") == images:
            return found
        assert time.monotonic() < deadline_s, found
        time.sleep(0.01)


def test_a_store_that_does_not_answer_holds_up_no_word_of_the_run(folder, monkeypatch):
    monkeypatch.setattr(run_progress, "_KEEP_S", 0.01)
    asked, answers = threading.Event(), threading.Event()

    def write_slowly(uri, value):
        asked.set()
        assert answers.wait(20)

    monkeypatch.setattr(storage, "write_json", write_slowly)
    made = make(folder)
    with made.kept():
        assert asked.wait(20)
        made.worked(work("a", 3))
        made.wrote({"ok": 4}, 20)
        assert shown[-1].num_done == 4
        answers.set()


def test_run_json_is_written_at_the_end_of_what_failed(folder):
    made = make(folder)
    with suppress(KeyboardInterrupt), made.kept():
        made.wrote({"ok": 4}, 20)
        assert storage.read_json(f"{folder.uri}/run.json")["counts"] == {}
        raise KeyboardInterrupt
    assert storage.read_json(f"{folder.uri}/run.json")["counts"]["images"] == 4


def test_a_line_tells_rate_workers_and_failures_by_reason(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    show = Progress(stream).run("localize")
    for second, done in ((0, 1000), (10, 1250)):
        clock[0] = second
        show(
            Snapshot(
                num_done=done,
                num_images=101_250,
                by_status=Counter(ok=done, undecodable=2, missing=1),
                num_workers=2,
                busy=0.973,
                gpu_use=0.868,
            )
        )
    assert stream.getvalue().splitlines()[-1] == (
        "localize: 1,250 of 101,250, 67 min left, 25 images/s, 2 workers 97% busy, "
        "GPUs 87%, 1 missing, 2 undecodable"
    )


def test_what_others_print_meanwhile_is_no_result(capsys):
    with Progress().live():
        print("a warning of Ray")
    print("the result")
    assert capsys.readouterr() == ("the result\n", "a warning of Ray\n")


def test_a_run_that_waits_for_its_first_worker_says_so():
    stream = io.StringIO()
    Progress(stream).run("localize")(
        Snapshot(num_done=0, num_images=9, by_status=Counter(), num_workers=0, busy=None)
    )
    assert stream.getvalue() == "localize: 0 of 9, waiting for a worker\n"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (119 * 60, "119 min"),
        (7500, "2 h 5 min"),
        (48 * 3600 - 31, "47 h 59 min"),
        (48 * 3600, "2 d 0 h"),
        (3.25 * 86400, "3 d 6 h"),
    ],
)
def test_durations_are_said_as_people_do(seconds, said):
    assert duration(seconds) == said
