import types

from cdl_jax.train import progress
from cdl_jax.train.progress import Bar, Summary


def test_all_that_was_done_is_shown_at_the_end_however_fast_it_came():
    with Bar("work", 100) as bar:
        for _ in range(99):
            bar.show(Summary("sparse", versions=1, accuracy=0.25), 1)
        bar.advance(1, "the last one")
        (task,) = bar._bar.tasks
        assert (task.completed, task.fields["note"]) == (100, "the last one")
        bar.show(Summary("sparse", accuracy=0.5, bytes_sent=2_000_000), 3)
        assert task.completed == 100
    assert task.completed == 103
    assert task.fields["note"].startswith("accuracy 0.5000  2.00 MB")


def test_the_bar_is_drawn_ten_times_a_second(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    bar, drawn = Bar("work", None), []
    monkeypatch.setattr(bar._bar, "update", lambda task, **what: drawn.append(what["advance"]))
    for _ in range(15):
        bar.advance()
        now[0] += 1 / 64
    assert drawn == [1, 7, 7]
