"""What is wrong on a command line or in a config is one line, and a status that is not 0."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adamae_jax.cli import INTERRUPTED_STATUS, USER_ERROR_STATUS

ROOT = Path(__file__).parent.parent
TINY = "--config=tests/configs/tiny.py"

JOB = """
from absl import flags

from adamae_jax import cli
from adamae_jax.errors import UserError

def main(argv):
    config = flags.FLAGS.config
    if config.seed < 0:
        raise UserError(f"seed {config.seed} is negative")
    print(config.batch_size, config.data.image_size, config.model.projection_bias)

cli.define_config()
cli.run(main)
"""


def start(*arguments: str, job: str = JOB) -> subprocess.CompletedProcess[str]:
    """A job that prints three fields of its config; warnings about old Python are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", job, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_fields_are_set_on_the_command_line() -> None:
    done = start(
        *("--config", "tests/configs/tiny.py", "--config.batch_size=6", "--noconfig.eval.knn"),
        *("--config.data.image_size=(8,12)", "--config.model.projection_bias"),
    )
    assert done.stdout == "6 (8, 12) True\n", done.stderr
    assert done.returncode == 0


def test_a_job_knows_what_the_file_had(tmp_path: Path) -> None:
    """Beside what the command line has set."""
    line = "    print(config.batch_size, "
    job = JOB.replace(line, f"    print(cli.recipe_values())\n{line}")
    done = start(TINY, "--config.steps=20", "--config.data.image_size=(8,12)", job=job)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "{'steps': 60, 'data.image_size': [16, 24]}"
    assert second == "8 (8, 12) False"


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
    done = subprocess.run(
        # The repository comes last on the path: its own configs are not the ones that are meant.
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.append({str(ROOT)!r})\n{JOB}",
            f"--config={recipe}",
        ],
        cwd=tmp_path / "configs",
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.startswith("3 "), done.stderr


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
    done = start(*arguments)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert done.returncode == USER_ERROR_STATUS
    assert done.stdout == ""


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_one_line(platform: str) -> None:
    """A machine with a GPU, or with JAX for one, would have it."""
    code = f"import jax\nfrom adamae_jax import cli\ncli.run(lambda argv: print('ran'), {['job']})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": platform, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
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
    done = start(f"--config={file}")
    (printed,) = done.stderr.splitlines()
    assert message in printed
    assert done.returncode == USER_ERROR_STATUS


@pytest.mark.parametrize(
    ("job", "shown"),
    [
        ("prepare", "\n  --source"),
        ("convert export", "\n  --output"),
        ("convert", "one of import, export"),
    ],
)
def test_help_lists_the_options_of_a_job(job: str, shown: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *f"adamae_jax.{job} --help".split()],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert shown in done.stdout, done.stdout + done.stderr
    assert "absl.app" not in done.stdout and done.returncode == 0


def test_an_interrupted_job_says_so_in_a_line() -> None:
    job = JOB.replace("print(config", "raise KeyboardInterrupt\n    print(config")
    done = subprocess.run(
        [sys.executable, "-c", job, TINY],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == INTERRUPTED_STATUS
    assert done.stderr == "\ninterrupted: the same command goes on from what is finished\n"
