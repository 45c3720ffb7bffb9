"""The README and the docs: links lead somewhere, and commands do what is said."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data import videos
from tests.runs import ROOT, environment

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()

# A ViT-B step takes a CPU half a minute: its command is run with a tiny model.
SMALL = [
    "--config.model.encoder.width=24",
    "--config.model.encoder.depth=1",
    "--config.model.encoder.num_heads=8",
    "--config.model.decoder.width=8",
    "--config.model.decoder.depth=1",
    "--config.model.decoder.num_heads=2",
    "--config.data.image_size=(32,32)",
    "--config.eval.random_draws=1",
]
QUICK = [
    "--config.batch_size=8",  # for as many devices as tests have
    "--config.steps=3",
    "--config.optimizer.warmup_steps=1",
    "--config.eval.num_examples=2",
    "--config.data.num_workers=0",
    "--config.compilation_cache_dir=",
]


def sections(text: str) -> set[str]:
    """What a page's headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    assert text.strip()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith("http"):
            path, _, section = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), target
            assert not section or section in sections(linked.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_was_left_to_be_filled_in(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"\b(?:TODO|TBD|FIXME|[A-Z]+_[A-Z]+_?[A-Z]*)\b(?!=)", text)
    assert not re.findall(r"^[A-Z]{5,}$|(?<=[a-z] )[A-Z]{7,}\b", text, re.MULTILINE)


def commands() -> list[list[str]]:
    """The README's ``python -m`` commands, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`(python -m tests[^`]*)`", README)
    return [shlex.split(line) for line in [*lines, *inline] if line.startswith("python ")]


def test_the_commands_are_found() -> None:
    jobs = [command[2] for command in commands()]
    assert jobs == [
        *("adamae_jax.prepare", "adamae_jax.pretrain", "adamae_jax.pretrain"),
        *("adamae_jax.visualize", "adamae_jax.pretrain", "adamae_jax.finetune"),
        *("adamae_jax.evaluate", "adamae_jax.predict", "adamae_jax.predict"),
        *("adamae_jax.probe", "adamae_jax.features", *["adamae_jax.convert"] * 3),
        *("adamae_jax.pretrain", "adamae_jax.benchmark", "tests.parity"),
    ]


# Containers and codecs as people have them, beside each other.
ENCODINGS = {
    "phone.mp4": "libx264",
    "web.webm": "libvpx-vp9",
    "old.avi": "mpeg4",
    "ripped.mkv": "libx265",
}


def test_the_commands_work(tmp_path: Path) -> None:
    """From a folder of videos to pictures, by the README's own lines, made small at their end."""
    for name, codec in ENCODINGS.items():
        videos.make_video(tmp_path / "folder" / name, num_frames=40, codec=codec)
    small = str(tmp_path / "small")
    places = {
        "FOLDER": str(tmp_path / "folder"),
        "DIR": str(tmp_path / "data"),
        "runs/mine": str(tmp_path / "mine"),
        "runs/large": str(tmp_path / "large"),
        "runs/small": small,
        "runs/longer": str(tmp_path / "longer"),
        "runs/demo": small,
        "runs/finetuned": str(tmp_path / "finetuned"),
        "runs/probed": str(tmp_path / "probed"),
        "runs/saliency": str(tmp_path / "saliency"),
        "runs/features": str(tmp_path / "features"),
        "adamae.safetensors": str(tmp_path / "adamae.safetensors"),
        "exported": str(tmp_path / "exported"),
        "models/adamae": str(tmp_path / "imported"),
    }
    extra = {
        ("adamae_jax.pretrain", "configs/adamae_k400.py"): [*SMALL, *QUICK],
        ("adamae_jax.pretrain", "configs/adamae_k400.py:L"): [*SMALL, *QUICK],
        ("adamae_jax.pretrain", "configs/adamae_demo.py"): QUICK,
        ("adamae_jax.pretrain", "configs/adamae_demo.py:tube"): QUICK,
        ("adamae_jax.finetune", "configs/finetune_demo.py"): [
            *QUICK,
            f"--config.data.dir={tmp_path / 'moving_objects_demo'}",
            "--config.eval.test_views=",
        ],
        ("adamae_jax.probe", "configs/probe_demo.py"): [
            *QUICK,
            f"--config.data.dir={tmp_path / 'moving_objects_demo'}",
            "--config.eval.knn_examples=32",
        ],
        ("adamae_jax.evaluate", ""): ["--num_videos=8"],
        ("adamae_jax.benchmark", "configs/adamae_ssv2.py"): [*SMALL, "--steps=1"],
    }
    for command in commands():
        config = [word.partition("=")[2] for word in command if word.startswith("--config=")]
        words = [word for word in command[1:] if not word.startswith("--config.steps")]
        words += extra.get((command[2], "".join(config)), [])
        for name, place in places.items():
            words = [re.sub(rf"(?<==){re.escape(name)}$", place, word) for word in words]
        # In this process, which has eight devices, they take longer than in processes of their own.
        eight = {"JAX_NUM_CPU_DEVICES": "8"} if "--config.mesh." in " ".join(command) else {}
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**environment(), **eight},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    assert list((tmp_path / "small" / "pictures").glob("step_0000003_*.png"))
    assert (tmp_path / "finetuned" / "evaluation" / "confusion.png").is_file()
    assert (tmp_path / "probed" / "summary.json").is_file()
    assert (tmp_path / "saliency" / "moving_saliency.mp4").is_file()
    assert len(list((tmp_path / "features").glob("*.npz"))) == len(ENCODINGS)
    assert (tmp_path / "exported" / "config.json").is_file()
    assert (tmp_path / "imported" / "model.json").is_file()


def test_the_python_lines_work(tmp_path: Path) -> None:
    """The README's Python on a model directory that is written here."""
    import jax

    from adamae_jax import experiment, pretrained
    from adamae_jax.config import resolve
    from configs import adamae_demo

    config = resolve(adamae_demo.get_config(), 1536)
    variables = jax.jit(experiment.pretraining(config).init)(jax.random.key(0))
    pretrained.save(tmp_path / "model", variables, config, 0)
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code) == 1
    names: dict[str, Any] = {}
    code = [text.replace("docs/", f"{ROOT}/docs/") for text in code]
    exec(code[0].replace("runs/demo", str(tmp_path / "model")), names)
    assert names["features"].shape == (6, 144, 128)
    assert type(names["model"]).__name__ == "Autoencoder"
