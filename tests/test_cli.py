import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cdl_jax import cli

QUICK = ["--initial-samples", "64", "--epochs", "1", "--batch-size", "32"]


def command(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "cdl_jax.cli", *words], capture_output=True, text=True, **options
    )


def refused(capsys, *words):
    """Runs a command in this process that must end in one sentence."""
    assert cli.main(list(words)) == 1
    out = capsys.readouterr()
    assert out.err.startswith("cdl-jax: ")
    assert out.err.count("\n") == 1
    assert "Traceback" not in out.err
    return out.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--dataset", "imagenet"], "dataset is 'imagenet'; give one of digits"),
        (["train", "--dataset", "mnist", "--data-dir", "/nowhere"], "no mnist in /nowhere"),
        (["train", "--model", "vgg"], "model is 'vgg'; give one of lenet5"),
        (["train", "--density", "0"], "density is 0.0; give a share in (0, 1]"),
        (["train", "--density", "1.5"], "density is 1.5"),
        (["train", "--compressor", "quantize", "--values", "int4"], "quantize sends values"),
        (["train", "--density", "nan"], "density is nan"),
        (["train", "--trigger", "129"], "trigger is 129, larger than batch_size 128"),
        (["train", "--trigger", "0"], "trigger is 0; give 1 or more"),
        (["train", "--batch-size", "-1"], "batch_size is -1"),
        (["train", "--learning-rate", "-1"], "learning_rate is -1.0"),
        (["train", "--pace", "0"], "pace is 0.0"),
        (["train", "--bits", "17"], "bits is 17"),
        (["train", "--run", "/proc/none"], "cannot make the run folder"),
        (["train", "--config", "/nowhere.toml"], "cannot read --config /nowhere.toml"),
        (["train", "--config"], "--config needs a file"),
        (["replica"], "replica needs --log"),
        (["replica", "--log", "/nowhere", "--wait", "0"], "there is no log at /nowhere"),
        (["replica", "--log", "x", "--poll", "-1"], "poll is -1.0"),
        (["replica", "--log", "x", "--public-key", "/nowhere"], "cannot read the key /nowhere"),
        (["train", "--sign-key", "/nowhere"], "cannot read the key /nowhere"),
        (["inspect"], "inspect needs --log"),
        (["inspect", "--log", "/nowhere"], "there is no log at /nowhere"),
        (["inspect", "--log", "/", "--last", "0"], "last is 0"),
    ],
)
def test_bad_input_is_one_sentence(capsys, words, sentence):
    assert sentence in refused(capsys, *words)


def test_no_command_or_an_unknown_one_prints_the_usage(capsys):
    assert cli.main([]) == 2
    assert "usage: cdl-jax" in capsys.readouterr().err
    assert cli.main(["frob"]) == 2
    assert "'frob' is no command" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0
    assert "train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("density = 'x'", "density to 'x'"), ("densty = 1", "sets 'densty'; known are dataset"),
     ("a = ", "is not TOML"), ("trigger = true", "trigger to True"),
     ("strategy = 'never'", "strategy to 'never'"), ("density = 3", "density is 3")],
)  # fmt: skip
def test_a_bad_toml_file_is_one_sentence(capsys, tmp_path, text, sentence):
    (tmp_path / "x.toml").write_text(text)
    assert sentence in refused(capsys, "train", "--config", str(tmp_path / "x.toml"))


def test_flags_stand_over_toml_over_defaults_and_print_config_comes_back(capsys, tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("density = 0.5\ntrigger = 4\npace = 10\n")
    assert cli.main(["train", f"--config={path}", "--trigger", "6", "--print-config"]) == 0
    printed = capsys.readouterr().out
    path.write_text(printed)
    assert cli.main(["train", "--config", str(path), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    for line in ("density = 0.5", "trigger = 6", "pace = 10", "initial_samples = 400"):
        assert line in printed


def test_train_replica_and_inspect_as_processes(tmp_path):
    log, run = str(tmp_path / "log"), str(tmp_path / "run")
    key = command("keygen", "--out", str(tmp_path / "key")).stdout.split()
    signed = ["--log", log, "--sign-key", key[0]]
    trained = command("train", *QUICK, "--limit", "40", *signed, "--run", run)
    assert trained.returncode == 0, trained.stderr
    summary = json.loads(trained.stdout)
    assert summary["versions"] == 5
    follow = ["replica", "--log", log, "--until", "5", "--public-key", key[1]]
    followed = command(*follow, "--run", str(tmp_path / "r"))
    assert followed.returncode == 0, followed.stderr
    assert json.loads(followed.stdout)["digest"] == summary["digest"]
    shown = command("inspect", "--log", log, "--last", "2")
    assert shown.returncode == 0, shown.stderr
    assert summary["digest"] in shown.stdout
    assert shown.stdout.count("\n") >= 6
    other = command("train", *QUICK, "--limit", "40", *signed, "--density", "0.5")
    assert (other.returncode, other.stderr.count("\n")) != (0, 0)
    assert "another configuration" in other.stderr
    assert "Traceback" not in other.stderr


def test_a_live_writer_keeps_a_second_trainer_out_and_an_interrupt_loses_nothing(tmp_path):
    log, run = str(tmp_path / "log"), tmp_path / "run"
    words = ["train", *QUICK, "--pace", "100", "--log", log, "--run", str(run)]
    first = subprocess.Popen(
        [sys.executable, "-m", "cdl_jax.cli", *words],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert first.poll() is None
        time.sleep(0.05)
    second = command("train", *QUICK, "--log", log)
    assert second.returncode == 1
    assert f"live writer (process {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == cli.INTERRUPTED
    summary = json.loads(out)
    assert summary["interrupted"]
    followed = command("replica", "--log", log, "--until", str(summary["versions"]))
    assert json.loads(followed.stdout)["digest"] == summary["digest"]


def test_a_replica_waits_for_its_trainer_and_stops_in_order(tmp_path):
    log = str(tmp_path / "log")
    os.mkdir(log)
    follower = subprocess.Popen(
        [sys.executable, "-m", "cdl_jax.cli", "replica", "--log", log, "--backend", "jax"],
        stdout=subprocess.PIPE,
    )
    trained = command("train", *QUICK, "--limit", "24", "--log", log)
    assert trained.returncode == 0, trained.stderr
    time.sleep(3)
    follower.send_signal(signal.SIGINT)
    out, _ = follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert json.loads(out)["digest"] == json.loads(trained.stdout)["digest"]
