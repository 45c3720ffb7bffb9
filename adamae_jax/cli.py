"""How every job starts: flags, a config, and user errors as one line instead of a traceback."""

import importlib
import logging
import os
import re
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_flags

from adamae_jax.errors import PreemptedError, UserError, WorkerDeathError

END_S = 10.0  # a job that has failed may take so long to tidy up
USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130  # as a shell says of SIGINT
PREEMPTED_STATUS = 75  # EX_TEMPFAIL: a scheduler may start the same command again
LOST_STATUS = 69  # EX_UNAVAILABLE: another process of the job is gone; the same holds

_HELP = r"-h|--?(help|helpshort|helpfull|helpxml)"

Main = Callable[[Sequence[str]], None]


def run(
    main: Main,
    argv: Sequence[str] | None = None,
    *,
    takes_arguments: bool = False,
    uses_devices: bool = True,
) -> None:
    """Runs a job's ``main(argv)`` under absl; a `UserError` ends it with one line and status 2.

    Args:
      main: the job.
      argv: program name and arguments; those of the process, if not given.
      takes_arguments: whether there may be others than options.
      uses_devices: whether it computes on this machine's devices, in this process; where not, they
        are not looked for before it begins.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1 and not takes_arguments:
                raise UserError(
                    f"unexpected argument {argv[1]!r}: options are given as --name=value"
                )
            _meet_others()
            if uses_devices:
                _check_platforms()
            main(argv)
        except WorkerDeathError as error:
            # Python waits for threads that hang, and grain for workers that do.
            threading.Thread(target=_leave_after, args=(END_S,), name="leave", daemon=True).start()
            fail(error)
        except UserError as error:
            fail(error)
        except PreemptedError as error:
            print(f"preempted: {error}", file=sys.stderr, flush=True)
            sys.exit(PREEMPTED_STATUS)
        except KeyboardInterrupt:
            print("\ninterrupted: the same command goes on from what is finished", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            # At once: a thread that still compiles would crash the regular end of Python.
            os._exit(INTERRUPTED_STATUS)

    _describe(main)
    # What JAX says at INFO is which accelerators are not there.
    logging.getLogger("jax").setLevel(logging.WARNING)
    app.run(guarded, argv=None if argv is None else list(argv), flags_parser=_parse_flags)


def _describe(main: Main) -> None:
    """Has ``--help`` tell of a job what it tells of a main module: docstring and options."""
    described = sys.modules.get(main.__module__)
    if described is not None:
        sys.modules["__main__"].__doc__ = described.__doc__
    options = flags.FLAGS.flags_by_module_dict()
    # What jobs share: --config, in this module, --workdir, and how processes find each other.
    for module in (main.__module__, __name__, "adamae_jax.job", "adamae_jax.distributed"):
        for option in options.get(module, ()):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], option)


def run_command(commands: Mapping[str, str]) -> None:
    """Runs ``python -m JOB COMMAND --name=value``.

    Args:
      commands: for each command, the module with its ``define_flags`` and ``main``. Only that
        module is imported, so that each command has flags of its own and needs no other's packages.
        ``USES_DEVICES`` in it is False where `run` is to be told so.
    """
    program, *arguments = sys.argv
    known = ", ".join(commands)
    if arguments and re.fullmatch(_HELP, arguments[0]):
        print(f"usage: COMMAND --name=value ..., where COMMAND is one of {known}; COMMAND --help "
              "lists its options")  # fmt: skip
        return
    if not arguments or arguments[0] not in commands:
        given = f"{arguments[0]!r} is not a command" if arguments else "no command is given"
        fail(UserError(f"{given}: use one of {known}, before any --name=value"))
    command = importlib.import_module(commands[arguments[0]])
    command.define_flags()
    uses_devices = getattr(command, "USES_DEVICES", True)
    run(command.main, [program, *arguments[1:]], uses_devices=uses_devices)


def define_config() -> None:
    """Defines ``--config=FILE.py`` and, with it, ``--config.field=value`` for every field."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The experiment: a Python file with get_config(), such as configs/adamae_demo.py. "
        "Each of its fields can be set on the command line: --config.field=value.",
    )
    flags.mark_flag_as_required("config")


def recipe_values() -> dict[str, Any]:
    """Returns the config file's own values of the fields that the command line sets, by path."""
    overridden = config_flags.get_override_values(flags.FLAGS["config"])
    return {path: flags.FLAGS[f"config.{path}"].default for path in overridden}


def fail(error: UserError) -> NoReturn:
    """Says what is wrong and leaves."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(USER_ERROR_STATUS)


def _meet_others() -> None:
    """Makes this process one of a job's, before anything touches a device."""
    if "coordinator" in flags.FLAGS:
        from adamae_jax import distributed  # imports JAX, which preparing does without

        distributed.begin()


def _check_platforms() -> None:
    """Raises a `UserError` where JAX does not find what the environment asks for."""
    asked, jax = os.environ.get("JAX_PLATFORMS"), sys.modules.get("jax")  # not in preparing
    if not asked or jax is None:
        return
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"JAX_PLATFORMS={asked}: JAX cannot use it here ({_short(error)}): install JAX for it, "
            "or unset JAX_PLATFORMS, and JAX takes what there is"
        ) from error


def _leave_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(USER_ERROR_STATUS)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, with whatever is wrong in flags or config as one line."""
    try:
        if "config" in flags.FLAGS:
            _check_config_given(argv)
        with warnings.catch_warnings():
            # ml_collections loads the file with a method that Python has deprecated.
            warnings.filterwarnings("ignore", r"the load_module\(\)", DeprecationWarning)
            return flags.FLAGS(list(argv))
    except SystemExit as end:
        sys.exit(0 if _asks_for_help(argv) else end.code)  # absl calls help a failure
    except UserError as error:
        fail(error)
    except (flags.Error, ImportError, ValueError, AttributeError, KeyError, TypeError) as error:
        fail(_flag_error(error, argv))


def _asks_for_help(argv: Sequence[str]) -> bool:
    return any(re.fullmatch(_HELP, word) for word in argv)


def _check_config_given(argv: Sequence[str]) -> None:
    """Raises a `UserError` where no config file is named, or it is not there."""
    if _asks_for_help(argv):
        return
    path = _config_path(argv)
    if path is None:
        raise UserError("no config is given: use --config=FILE.py, such as one of configs/")
    # Behind a colon ml_collections takes an argument for get_config.
    file = Path(path.split(":", 1)[0])
    if not file.is_file():
        raise UserError(f"--config={path}: there is no such file")
    # Recipes import what they share from the folder that they are in, wherever the job is started.
    sys.path.append(str(file.resolve().parent.parent))


def _config_path(argv: Sequence[str]) -> str | None:
    """The value of ``--config=PATH`` or ``--config PATH``."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if re.match(r"--?config=", word):
            return word.split("=", 1)[1]
        if re.fullmatch(r"--?config", word):
            return following
    return None


def _flag_error(error: Exception, argv: Sequence[str]) -> UserError:
    """What is wrong with a flag or in the config file, in one line."""
    from adamae_jax.config import unknown_field  # imports JAX, which preparing does without

    for word in argv:
        path = re.match(r"--?(?:no)?config\.([\w.]+)", word)
        if path and (wrong := unknown_field(path[1])):
            return UserError(f"{word}: {wrong}")
    if isinstance(error, flags.Error) and "\n" not in str(error):
        return UserError(str(error))
    config = str(_config_path(argv))
    chain: list[BaseException] = [error]  # from what absl and ml_collections raise to its cause
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    for cause in reversed(chain):
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if frame.filename == config.split(":", 1)[0]:
                field = re.match(r"config\.([\w.]+) *=", frame.line or "")
                unknown = unknown_field(field[1]) if field else ""
                reason = unknown if isinstance(cause, AttributeError) else ""
                where = f"--config={config}, line {frame.lineno} ({frame.line})"
                return UserError(f"{where}: {reason or _short(cause)}")
    if options := [word for word in argv if "config.masking.options." in word]:
        return UserError(
            f"{' '.join(options)}: the config's masking strategy has no such option; its options "
            "are the fields of its class"
        )
    return UserError(f"--config={config}: {_short(chain[-1])}")


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
