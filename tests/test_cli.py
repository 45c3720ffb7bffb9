"""What is wrong on a command line or in a config is one line, and a status that is not 0."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from absl import flags

from adamae_jax import cli
from adamae_jax.cli import INTERRUPTED_STATUS, USER_ERROR_STATUS
from adamae_jax.errors import UserError
from tests.jobs import Ended, ended, run

ROOT = Path(__file__).parent.parent
TINY = "--config=tests/configs/tiny.py"


def main(argv: Sequence[str]) -> None:
    """Prints what the file had of the fields that are set, and three fields."""
    config = flags.FLAGS.config
    if config.seed < 0:
        raise UserError(f"seed {config.seed} is negative")
    print(cli.recipe_values())
    print(config.batch_size, config.data.image_size, config.model.projection_bias)


def interrupted(argv: Sequence[str]) -> None:
    raise KeyboardInterrupt


def job(main: Callable[[Sequence[str]], None] = main) -> None:
    cli.define_config()
    cli.run(main)


def start(*arguments: str) -> Ended:
    return ended(job, *arguments)


def process(
    *arguments: str, code: str = "job()", cwd: Path = ROOT, platform: str = "cpu"
) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, where warnings about old Python are errors."""
    # The repository comes last on the path.
    code = f"import sys; sys.path.append({str(ROOT)!r})\nfrom tests.test_cli import *\n{code}"
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": platform, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_fields_are_set_on_the_command_line() -> None:
    """And a job knows what the file had."""
    done = start(
        *("--config", "tests/configs/tiny.py", "--config.batch_size=6", "--noconfig.eval.knn"),
        *("--config.data.image_size=(8,12)", "--config.model.projection_bias"),
    )
    had, has = done.out.splitlines()
    assert had == (
        "{'batch_size': 8, 'eval.knn': True, 'data.image_size': [16, 24], "
        "'model.projection_bias': False}"
    )
    assert (has, done.status, done.err) == ("6 (8, 12) True", 0, "")


def test_a_recipe_is_found_from_anywhere(tmp_path: Path) -> None:
    """It imports what recipes share from the folder beside it, not from the working directory."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "neighbour.py").write_text("SEED = 3\n")
    recipe = tmp_path / "configs" / "recipe.py"
    recipe.write_text(
        "from adamae_jax.config import default_config\n"
        "from {package} import neighbour\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.batch_size = neighbour.SEED\n"
        "    return config\n".format(package="configs")
    )
    done = process(f"--config={recipe}", cwd=tmp_path / "configs")
    assert done.stdout.startswith("{}\n3 "), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no config is given: use --config=FILE.py"),
        (["--config=nowhere.py", "--config.seed=1"], "--config=nowhere.py: there is no such file"),
        (
            [TINY, "--config.mesh.model=2"],
            "--config.mesh.model=2: config.mesh has no field 'model': it has data, fsdp, tensor",
        ),
        (
            [TINY, "--config.masking=tube"],
            "config.masking = masking_config('tube', mask_ratio=0.9)",
        ),
        ([TINY, "--config.masking.options=x"], "each strategy has options of its own"),
        ([TINY, "--config.optimizer.lr=1"], "no field 'lr': did you mean 'learning_rate'?"),
        ([TINY, "--config.masking.options.heads=2"], "masking.options.heads=2: the config's mask"),
        ([TINY, "--config.batch_size=many"], "--config.batch_size=many: invalid literal"),
        ([f"{TINY}:S"], f"{TINY}:S: TypeError: get_config() takes 0 positional arguments"),
        ([TINY, "--wrokdir=x", "step"], "Unknown command line flag 'wrokdir'"),
        ([TINY, "step"], "unexpected argument 'step'"),
        ([TINY, "--config.seed=-1"], "seed -1 is negative"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], message: str) -> None:
    assert message in start(*arguments).refusal


def test_a_mistake_ends_a_process() -> None:
    done = process(TINY, "step")
    assert done.stderr == "error: unexpected argument 'step': options are given as --name=value\n"
    assert (done.returncode, done.stdout) == (USER_ERROR_STATUS, "")


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_one_line(platform: str) -> None:
    """A machine with a GPU, or with JAX for one, would have it."""
    done = process(TINY, platform=platform)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and f"JAX_PLATFORMS={platform}: JAX cannot use it here" in said[0]
    assert (done.returncode, done.stdout) == (USER_ERROR_STATUS, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "config.batch_sise = 1",
            "line 5 (config.batch_sise = 1): config has no field 'batch_sise': did you mean 'batch",
        ),
        ("config.batch_size = 'many'", "Could not override field 'batch_size'"),
        ("config.masking = masking_config('best', 0.9)", "masking.name 'best' is unknown"),
        (
            "import neighbour",
            "(import neighbour): ModuleNotFoundError: No module named 'neighbour'",
        ),
    ],
)
def test_mistakes_in_a_config_file(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "mistaken.py"
    file.write_text(
        "from adamae_jax.config import default_config, masking_config\n\n"
        f"def get_config():\n    config = default_config()\n    {line}\n    return config\n"
    )
    assert message in start(f"--config={file}").refusal


@pytest.mark.parametrize(
    ("job", "shown"),
    [
        ("prepare", "\n  --source"),
        ("convert export", "\n  --output"),
        ("convert", "one of import, export"),
    ],
)
def test_help_lists_the_options_of_a_job(job: str, shown: str) -> None:
    name, *words = job.split()
    done = run(f"adamae_jax.{name}", *words, "--help")
    assert shown in done.out, done
    assert "absl.app" not in done.out and done.status == 0


def test_an_interrupted_job_says_so_in_a_line() -> None:
    done = process(TINY, code="job(interrupted)")
    assert done.returncode == INTERRUPTED_STATUS
    assert done.stderr == "\ninterrupted: the same command goes on from what is finished\n"
