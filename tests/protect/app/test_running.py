"""Work beside the page: order, progress, errors, and an end within one step."""

import threading
import time
from pathlib import Path

import pytest

from imaging.batch.discover import Job
from protect.app.running import Progress, Running

JOB = Job(Path("in.png"), Path("out.png"))


def test_everything_that_is_done_arrives_in_order():
    def work(tell):
        for number in range(5):
            tell(JOB, 1.0)
            yield number

    assert [each for each in Running(work, 5) if not isinstance(each, Progress)] == [0, 1, 2, 3, 4]


def test_progress_names_the_picture_and_guesses_the_time_left():
    seen = threading.Event()

    def work(tell):
        yield "first"
        tell(JOB, 0.5)
        seen.wait(10)
        yield "second"

    told = []
    for each in Running(work, 4):
        told.append(each)
        if isinstance(each, Progress):
            seen.set()

    progress = next(each for each in told if isinstance(each, Progress))
    assert (progress.finished, progress.total, progress.name) == (1, 4, "in.png")
    assert progress.share == pytest.approx(1.5 / 4)
    assert progress.seconds_left == pytest.approx(progress.seconds * (1 - 0.375) / 0.375)


def test_no_guess_is_made_at_the_very_start():
    assert Progress(0, 100, "a", 0.001, 10.0).seconds_left is None


def test_stopping_ends_the_work_at_its_next_step_and_keeps_what_is_done():
    steps = []

    def work(tell):
        yield "done"
        for step in range(1000):
            steps.append(step)
            time.sleep(0.01)
            tell(JOB, step / 1000)
        yield "never"

    running, made = Running(work, 2), []
    for each in running:
        if isinstance(each, Progress):
            running.stop()
        else:
            made.append(each)

    assert made == ["done"]
    assert len(steps) < 200


def test_a_reader_who_goes_away_ends_the_work():
    ended = threading.Event()

    def work(tell):
        try:
            yield "first"
            while True:
                time.sleep(0.01)
                tell(JOB, 0.1)
        finally:
            ended.set()

    reader = iter(Running(work, 2))
    assert next(reader) == "first"
    reader.close()

    assert ended.wait(5)


def test_an_error_of_the_work_is_raised_to_the_reader():
    def work(tell):
        yield 1
        raise ValueError("no such model")

    reader = iter(Running(work, 2))
    assert next(reader) == 1
    with pytest.raises(ValueError, match="no such model"):
        next(reader)


def test_the_end_comes_when_nothing_is_written_any_more():
    begun, written = threading.Event(), []

    def work(tell):
        begun.set()
        time.sleep(0.2)
        written.append("last")
        tell(JOB, 0.5)
        written.append("never")
        yield "never"

    running = Running(work, 1)
    reader = threading.Thread(target=lambda: list(running))
    reader.start()
    begun.wait(10)
    running.end()

    assert written == ["last"]
    reader.join(10)
    assert not reader.is_alive()


def test_work_that_never_began_ends_at_once():
    Running(lambda tell: iter(()), 1).end()
