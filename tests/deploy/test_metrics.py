import time

from cdl_jax.deploy.metrics import Metrics


def observed(metrics):
    text = metrics.text().decode()
    line = next(x for x in text.splitlines() if x.startswith("cdl_first_answer_seconds_count"))
    return float(line.split()[1])


def test_a_version_is_counted_once_whichever_thread_tells_first():
    metrics = Metrics()
    first = metrics.first_answer
    first.written(1, time.time())
    first.answered(1)
    first.answered(1)
    assert observed(metrics) == 1
    first.answered(2)  # by a request, before the follower could say when it was written
    first.written(2, time.time())
    assert observed(metrics) == 2


def test_a_version_that_answered_nothing_is_not_counted():
    metrics = Metrics()
    metrics.first_answer.written(1, time.time())
    metrics.first_answer.written(2, time.time())
    metrics.first_answer.answered(1)
    assert observed(metrics) == 0
