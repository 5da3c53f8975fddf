import json
import types

import pytest

from experiments import resume_faults
from experiments.resume_faults import FILE, Options, main


@pytest.fixture
def fifth(tmp_path, monkeypatch):
    """A campaign whose runs cost nothing and end all equal, and whose fifth is interrupted."""
    numbers = []

    def one(*_):
        numbers.append(len(numbers))
        if len(numbers) == 5:
            raise KeyboardInterrupt
        return {"kills": 1}, []

    config = types.SimpleNamespace(
        values={"jax_compilation_cache_dir": "there"}, update=lambda *_: None
    )
    monkeypatch.setattr(resume_faults, "jax", types.SimpleNamespace(config=config))
    monkeypatch.setattr(resume_faults, "in_a_child", lambda function, command: {"command": command})
    monkeypatch.setattr(resume_faults, "unkilled", lambda *_, **__: 1.0)
    monkeypatch.setattr(resume_faults, "remains", lambda place: {})
    monkeypatch.setattr(resume_faults, "of_its_cuts", lambda killed, place: {})
    monkeypatch.setattr(resume_faults, "one", one)
    with pytest.raises(KeyboardInterrupt):
        main(Options(runs=6, results=str(tmp_path)))
    return tmp_path


def runs(folder):
    return json.loads((folder / FILE).read_text())["runs"]


def test_a_campaign_that_is_stopped_goes_on_and_may_grow(fifth, monkeypatch):
    assert runs(fifth) == 4
    assert main(Options(runs=8, results=str(fifth))) == 0
    found = json.loads((fifth / FILE).read_text())
    assert (found["runs"], found["kills"], found["command"].split()[-3]) == (8, 8, "8")
    assert sorted(p.name for p in fifth.iterdir()) == [FILE]


@pytest.mark.parametrize("what", ["seed", "sources", "settings"])
def test_runs_of_another_campaign_do_not_count_and_that_is_said(fifth, capsys, what):
    found = json.loads((fifth / FILE).read_text())
    del found[what]  # as in a file from before it was written down
    (fifth / FILE).write_text(json.dumps(found))
    assert main(Options(runs=2, results=str(fifth))) == 0
    assert runs(fifth) == 2
    assert f"{FILE} is of other {what}: its 4 runs do not count" in capsys.readouterr().err
