"""The command line: cdl-jax train | replica | serve | inspect | rollback | keygen."""

import dataclasses
import os
import pathlib
import signal
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Self

import tomli_w
import tyro

from cdl_jax.deploy.follow import FollowConfig, follow
from cdl_jax.deploy.inspect import InspectConfig, show
from cdl_jax.deploy.rollback import RollbackConfig
from cdl_jax.deploy.serve import ServeConfig
from cdl_jax.errors import CdlError, ConfigError
from cdl_jax.wire import signing

INTERRUPTED = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeygenConfig:
    """Settings of `cdl-jax keygen`."""

    out: str = "cdl-jax.key"
    """File of the signing key (Ed25519, PEM); the public one goes to the same name and .pub."""

    def checked(self) -> Self:
        """Itself."""
        return self


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status. An error a user can mend is one sentence."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(words)
    except (CdlError, KeyboardInterrupt) as error:
        return _told(error)


def train(config: Any) -> int:
    """`cdl-jax train`: initial training, then the stream, published version by version."""
    from cdl_jax.train import run

    try:
        summary = run(config)
    except BaseException as error:
        if config.processes > 1:
            # At its orderly exit JAX would wait for processes that may be gone, and then abort.
            status = _told(error)
            sys.stdout.flush()
            os._exit(status)
        raise
    print(summary.to_json(), end="")
    return INTERRUPTED if summary.interrupted else 0


def _told(error: BaseException) -> int:
    """Prints an error, one that a user can mend as a sentence; the exit status."""
    if isinstance(error, KeyboardInterrupt):
        print("cdl-jax: interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, CdlError):
        print(f"cdl-jax: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return 1


def replica(config: FollowConfig) -> int:
    """`cdl-jax replica`: follows a log and keeps its newest version in memory."""
    print(follow(config).to_json(), end="")
    return 0


def serve(config: ServeConfig) -> int:
    """`cdl-jax serve`: follows a log and answers requests over HTTP."""
    from cdl_jax.deploy import serve as command

    command.serve(config)
    return 0


def inspect(config: InspectConfig) -> int:
    """`cdl-jax inspect`: a log's versions, sizes and digests."""
    show(config)
    return 0


def rollback(config: RollbackConfig) -> int:
    """`cdl-jax rollback`: the content of an old version becomes the log's newest."""
    from cdl_jax.deploy import rollback as command

    print(command.rollback(config))
    return 0


def keygen(config: KeygenConfig) -> int:
    """`cdl-jax keygen`: a pair of keys, for the trainer to sign and replicas to check with."""
    print(*signing().write_pair(config.out), sep="\n")
    return 0


def _run(words: list[str]) -> int:
    commands = {
        "train": train, "replica": replica, "serve": serve, "inspect": inspect,
        "rollback": rollback, "keygen": keygen,
    }  # fmt: skip
    if not words or words[0] not in commands:
        return _usage(words, commands)
    name = words[0]
    config_type = _config_type(name)
    words, path = _take(words[1:], "--config")
    only_print = "--print-config" in words
    config = _parse(name, config_type, [w for w in words if w != "--print-config"], path)
    if only_print:
        print(tomli_w.dumps({k: v for k, v in vars(config).items() if v is not None}), end="")
        return 0
    return commands[name](config)


def _config_type(name: str) -> Any:
    if name == "train":
        try:
            from cdl_jax.train.config import TrainConfig
        except ImportError as error:
            raise ConfigError(f"train needs more: pip install 'cdl_jax[all]' ({error})") from error
        return TrainConfig
    return {
        "replica": FollowConfig, "serve": ServeConfig, "inspect": InspectConfig,
        "rollback": RollbackConfig, "keygen": KeygenConfig,
    }[name]  # fmt: skip


def _parse(name: str, config_type: Any, words: list[str], path: str | None) -> Any:
    """Flags over a TOML file over defaults; values are checked once all are together."""
    given = {} if path is None else _toml(path, config_type)
    note = "--config FILE reads any of these from TOML; --print-config prints them and stops."
    return tyro.cli(
        config_type,
        prog=f"cdl-jax {name}",
        args=words,
        default=config_type(**given),
        description=f"{config_type.__doc__}\n\n{note}",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    ).checked()


def _toml(path: str, config_type: Any) -> dict[str, Any]:
    try:
        given = tomllib.loads(pathlib.Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from error
    known = {field.name: field.type for field in dataclasses.fields(config_type)}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"--config {path} sets {name!r}; known are {', '.join(known)}")
        if not _fits(value, known[name]):
            raise ConfigError(f"--config {path} sets {name} to {value!r}; give {known[name]}")
    return given


def _fits(value: Any, kind: Any) -> bool:
    allowed = getattr(kind, "__args__", (kind,))
    if any(isinstance(a, str) for a in allowed):
        return value in allowed
    if isinstance(value, bool):
        return bool in allowed
    return type(value) in allowed or (isinstance(value, int) and float in allowed)


def _take(words: list[str], flag: str) -> tuple[list[str], str | None]:
    """The words without a flag and its value, and the value."""
    for i, word in enumerate(words):
        if word == flag:
            if i + 1 == len(words):
                raise ConfigError(f"{flag} needs a file")
            return words[:i] + words[i + 2 :], words[i + 1]
        if word.startswith(flag + "="):
            return words[:i] + words[i + 1 :], word.partition("=")[2]
    return words, None


def _usage(words: list[str], commands: dict[str, Callable[[Any], int]]) -> int:
    text = "\n".join(
        f"  {name:8} {(f.__doc__ or '').split(': ', 1)[1]}" for name, f in commands.items()
    )
    usage = f"usage: cdl-jax COMMAND [--help] [flags]\n\n{text}"
    if words and words[0] in ("-h", "--help"):
        print(usage)
        return 0
    wrong = f"cdl-jax: {words[0]!r} is no command\n" if words else ""
    print(wrong + usage, file=sys.stderr)
    return 2


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
