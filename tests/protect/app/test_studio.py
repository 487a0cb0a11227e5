"""The state behind the page: nothing of a visitor stays when he has left."""

import threading
import time

from protect.app.running import Running
from protect.app.studio import Studio


def test_what_the_work_writes_last_goes_with_the_visitor(tmp_path):
    studio, begun = Studio(tmp_path), threading.Event()
    result = studio.desk("one").folder / "results" / "late.png"

    def work(tell):
        begun.set()
        time.sleep(0.2)
        result.parent.mkdir(parents=True)  # as a batch does for its results
        result.write_bytes(b"x")
        yield "done"

    reader = threading.Thread(target=lambda: list(studio.follow("one", Running(work, 1), [])))
    reader.start()
    begun.wait(10)

    assert studio.leave("one")
    assert not list(tmp_path.iterdir())
    reader.join(10)


def test_each_tab_has_a_desk_of_its_own_and_all_go_with_the_visitor(tmp_path):
    studio = Studio(tmp_path)
    result = studio.desk("one").folder / "result.png"
    result.touch()
    other = studio.desk("one", "detect")
    (other.folder / "heatmap.png").touch()

    assert studio.desk("one", "detect") is other
    other.cleared()
    assert result.exists()
    studio.desk("two", "purify")
    assert not studio.leave("one")
    assert len(list(tmp_path.iterdir())) == 1


def test_one_visitor_leaves_and_the_other_keeps_his_desk(tmp_path):
    studio = Studio(tmp_path)
    studio.desk("one")
    kept = studio.desk("two")

    assert not studio.leave("one")
    assert list(tmp_path.iterdir()) == [kept.folder]
