"""The comparison's runner, with an interpreter that only writes down what it is asked for, and what
is made of the figures."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launch import compare, compare_plan, comparison, cost, provenance

ROOT = Path(__file__).resolve().parent.parent
# A job that has the figures of a complete run at once, and counts how often it is started.
STUB = """#!{python}
import json, pathlib, sys, time
if sys.argv[1] == "-c":
    print("1 x cpu")
    raise SystemExit
here = pathlib.Path(__file__).parent
if sys.argv[2] == "launch.cost":
    print(json.dumps({{name: 10**9 * (1 + ("adaptive" in name)) for name in sys.argv[3:]}}))
    raise SystemExit
words = dict(word.partition("=")[::2] for word in sys.argv[3:])
stage, run = sys.argv[2].split(".")[1], pathlib.Path(words["--workdir"])
with (here / "log").open("a") as log:
    print(run.relative_to(here / "runs"), file=log)
print("what the job says")
for line in (here / "does").read_text().splitlines():
    what, where = line.split()
    if where in str(run):
        if what == "fail":
            raise SystemExit("the job's last words")
        print("waits", flush=True)
        time.sleep(60)
run.mkdir(parents=True, exist_ok=True)
config = {{"batch_size": 32, "classifier": {{"num_classes": 8}}}}
(run / "config.json").write_text(json.dumps(config))
(run / "test").mkdir(exist_ok=True)
(run / "test/metrics.json").write_text(json.dumps({{"top1": 0.5, "top5": 0.75}}))
(run / "metrics.jsonl").write_text("".join(
    json.dumps({{"step": step, "eval_accuracy": step / 1000}}) + "\\n" for step in (250, 500, 750)))
(run / "summary.json").write_text(json.dumps({{
    "steps": int(words["--config.steps"]), "seconds": 60.0, "clips_per_second": 64.0,
    "loss_last": 1.5, "loss_reconstruction_last": 0.25, "eval_loss_reconstruction": 0.5,
    "foreground_lift": None, "eval_accuracy_linear": 0.25, "eval_accuracy_attentive": 0.375,
    "eval_accuracy_change": 0.625, "eval_knn_accuracy": 0.125}}))
"""


class Bench:
    """A comparison in a folder of its own, by an interpreter that does nothing real."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "python"
        self.python.write_text(STUB.format(python=sys.executable))
        self.python.chmod(0o755)
        self.does("")

    def does(self, what: str) -> None:
        (self.folder / "does").write_text(what)

    def arguments(self, *more: str) -> list[str]:
        places = {"workdir": "runs", "results": "c.json", "page": "page.md", "plot": "c.png"}
        return [f"--{name}={self.folder / place}" for name, place in places.items()] + list(more)

    def plan(self, *more: str) -> compare_plan.Plan:
        return compare_plan.Plan(compare_plan.parse(self.arguments(*more)), str(self.python))

    def run(self, *more: str) -> list[str]:
        """The jobs that a comparison starts."""
        list(compare.compare(self.plan(*more)))
        return self.started()

    def started(self) -> list[str]:
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def records(self) -> list[dict[str, Any]]:
        return comparison.read(self.folder / "c.json")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def options_of(line: str) -> dict[str, str]:
    words = line.split()
    return {"job": words[2], **dict(word.partition("=")[::2] for word in words[3:])}


def test_dry_run_prints_every_job(capsys: pytest.CaptureFixture[str], bench: Bench) -> None:
    arguments = bench.arguments("--dry_run", "--methods=none,tube,own=configs/mine.py:x")
    compare.main([*arguments, "--seeds=3,5", "--steps=pretrain=7,finetune=8,probe=9"])
    jobs = [options_of(line) for line in capsys.readouterr().out.splitlines()]
    assert len(jobs) == 3 * 2 * 3 and not bench.started()
    assert [job["--config.seed"] for job in jobs] == ["3"] * 9 + ["5"] * 9
    assert {job["--config.data.dir"] for job in jobs} == {compare_plan.DATA}
    assert len({job["--workdir"] for job in jobs}) == len(jobs)
    for pretrain, finetune, probe in (jobs[place : place + 3] for place in range(0, 18, 3)):
        scratch = "/none/" in pretrain["--workdir"]
        assert pretrain["--config.steps"] == ("1" if scratch else "7")
        assert (finetune["--config.steps"], probe["--config.steps"]) == ("8", "9")
        assert finetune.get("--config.init_from") == (None if scratch else pretrain["--workdir"])
        assert probe["--config.init_from"] == pretrain["--workdir"]
    configs = [job["--config"] for job in jobs[3:9]]
    assert configs[::3] == ["configs/comparison_demo.py:tube", "configs/mine.py:x"]
    assert configs[1:3] == [f"configs/comparison_{job}_demo.py" for job in ("finetune", "probe")]


def test_options_of_the_large_dataset(bench: Bench) -> None:
    plan = bench.plan("--methods=tube", "--data=elsewhere/moving_objects_large")
    rates = [
        option
        for cell in plan.cells()
        for option in plan.command(cell)
        if "sampling_rate" in option
    ]
    assert rates == [f"--config.data.sampling_rate={rate}" for rate in (3, 3, 3)]


def test_a_bad_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_plan.parse(["--methods=tubes"])
    assert "method 'tubes' is unknown" in capsys.readouterr().err


def test_figures_are_kept(bench: Bench) -> None:
    assert bench.run("--methods=tube") == [f"tube/seed0/{stage}" for stage in compare_plan.STEPS]
    pretrained, finetuned, probed = (record["figures"] for record in bench.records())
    for figures in (pretrained, finetuned, probed):
        assert figures.pop("memory_mib") > 1
    losses = {"loss": 0.25, "held_out_loss": 0.5}
    assert pretrained == {**losses, "lift": None, "step_ms": 500.0, "steps": 1000, "gflop": 1.0}
    # More than half of the clips, not half.
    assert finetuned == {"top1": 0.5, "top5": 0.75, "loss": 1.5, "half": 750, "chance": 0.125}
    accuracies = {"linear": 0.25, "attentive": 0.375, "change": 0.625, "knn": 0.125}
    assert probed == {**accuracies, "chance": 0.125}
    for record in bench.records():
        assert record["steps"] == compare_plan.STEPS and record["data"] == "moving_objects_medium"
        assert record["trained_steps"] == compare_plan.STEPS[record["stage"]]
        assert record["versions"].keys() >= {"jax", "python"} and "CPU cores" in record["device"]


def test_what_is_finished_is_not_run_again(bench: Bench) -> None:
    bench.run("--methods=none,tube")
    assert bench.run("--methods=none,tube") == []
    (bench.folder / "runs/tube/seed0/finetune/test/metrics.json").unlink()  # killed before its test
    assert bench.run("--methods=none,tube") == ["tube/seed0/finetune"]
    assert bench.run("--methods=none,tube", "--seeds=0,1", "--stages=probe") == [
        "none/seed1/probe",
        "tube/seed1/probe",
    ]
    assert len(bench.records()) == 8
    # Other steps are another table; how much a run held that was complete before is not known.
    assert len(bench.run("--methods=tube", "--steps=probe=9")) == 3
    assert [record["figures"]["memory_mib"] for record in bench.records()[8:]] == [None] * 3


def test_equal_flops(bench: Bench) -> None:
    """Steps are as many as the FLOPs of random masks allow; what has the usual number is shared."""
    bench.run("--methods=adaptive,tube", "--steps=pretrain=900")
    again = bench.run("--methods=none,adaptive,tube", "--steps=pretrain=900", "--budget=flops")
    assert again == [
        *(f"none/seed0/{stage}" for stage in compare_plan.STEPS),
        *(f"adaptive-450/seed0/{stage}" for stage in compare_plan.STEPS),
        *(f"tube/seed0/{stage}" for stage in compare_plan.STEPS),  # they see that all is done
    ]
    trained = {
        (record["method"], record["budget"]): record["trained_steps"]
        for record in bench.records()
        if record["stage"] == "pretrain"
    }
    assert trained == {
        **{("adaptive", "steps"): 900, ("tube", "steps"): 900},
        **{("none", "flops"): 1, ("adaptive", "flops"): 450, ("tube", "flops"): 900},
    }
    tables = comparison.tables(bench.records(), "c.png")
    assert "900 steps of pretraining with random masks, and as many FLOPs with others" in tables


def test_flops_that_cannot_be_counted(bench: Bench) -> None:
    arguments = bench.arguments("--methods=mine=configs/missing.py", "--budget=flops")
    plan = compare_plan.Plan(compare_plan.parse(arguments))
    with pytest.raises(compare_plan.JobError, match="cannot count .*missing.py.*: FileNotFound"):
        plan.costs  # noqa: B018


def test_what_a_step_costs() -> None:
    """A sampler costs something, and tokens that are not decoded nothing."""
    names = ("random", "oracle", "adaptive", "dual")
    found = [cost.flops(cost.read(f"configs/comparison_demo.py:{name}")) for name in names]
    assert found[0] == found[1] and found[2] > 1.2 * found[0] and found[3] < 0.9 * found[0]


def test_a_job_that_fails(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.does("fail tube/seed0/pretrain\nfail random/seed0/finetune\n")
    with pytest.raises(compare_plan.JobError, match="2 jobs have failed"):
        bench.run("--methods=tube,random,frame")
    failed = "error: tube, seed 0, pretrain: status 1, see "
    errors = capsys.readouterr().err
    assert failed in errors and "the job's last words" in errors
    started = bench.started()
    assert "tube/seed0/finetune" not in started  # it had nothing to begin with
    assert "random/seed0/probe" in started and "frame/seed0/probe" in started
    bench.does("")
    again = bench.run("--methods=tube,random,frame")
    assert again == [f"tube/seed0/{stage}" for stage in compare_plan.STEPS] + [
        "random/seed0/finetune"
    ]


def test_the_job_is_told_to_end(bench: Bench) -> None:
    bench.does("wait tube/seed0/finetune\n")
    program = "import sys; from launch import compare as c; "
    program += "list(c.compare(c.Plan(c.parse(sys.argv[2:]), sys.argv[1])))"
    command = [sys.executable, "-c", program, str(bench.python), *bench.arguments("--methods=tube")]
    runner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    log = bench.folder / "runs/tube/seed0/finetune.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "waits" in log.read_text()):
        assert time.monotonic() < deadline and runner.poll() is None
        time.sleep(0.05)
    start = time.monotonic()
    runner.send_signal(signal.SIGTERM)
    runner.communicate(timeout=30)
    assert runner.returncode == 128 + signal.SIGTERM and time.monotonic() - start < 30
    (pretrained,) = bench.records()
    assert pretrained["stage"] == "pretrain"
    assert 1 < pretrained["figures"]["memory_mib"] < 500  # as much as a bare interpreter, in MiB
    bench.does("")
    bench.started()
    assert bench.run("--methods=tube") == ["tube/seed0/finetune", "tube/seed0/probe"]


def test_the_commit_tells_of_changed_code(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) == "unknown"
    for folder in ("configs", "docs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").touch()
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    first = provenance.commit(tmp_path)
    assert len(first) == 10
    (tmp_path / "docs/a").write_text("figures")
    assert provenance.commit(tmp_path) == first
    (tmp_path / "configs/a").write_text("another rate")
    assert provenance.commit(tmp_path) == first + "+"


# --- what is made of the figures ---


def made(
    method: str, seed: int, stage: str, steps: int = 500, **figures: float | None
) -> dict[str, Any]:
    return {
        **{"method": method, "seed": seed, "stage": stage, "data": "moving_objects_demo"},
        **{"steps": {"pretrain": steps, "finetune": 1500, "probe": 300}, "budget": "steps"},
        **{"figures": figures, "seconds": 1800.0, "device": "a device", "versions": {"jax": "1"}},
        **{"commit": "abc", "date": "2026-01-01"},
    }


def finetuned(method: str, tops: Sequence[float], steps: int = 500) -> list[dict[str, Any]]:
    return [
        made(method, seed, "finetune", steps, top1=top, loss=9.0, chance=0.125)
        for seed, top in enumerate(tops)
    ]


def test_tables() -> None:
    records = [
        *finetuned("tube", (0.4, 0.5, 0.6)),
        *finetuned("none", (0.25,)),
        made("tube", 0, "probe", linear=0.2, attentive=None, change=0.4, knn=0.5),
        made("tube", 0, "pretrain", loss=0.5, lift=None, step_ms=120.4),
        made("none", 0, "pretrain", loss=1.5, step_ms=1.0),
        *finetuned("frame", (0.75, 0.25), steps=2000),
    ]
    text = comparison.tables(records, "c.png")
    rows = [line for line in text.splitlines() if line.startswith(("| tube", "| none", "| frame"))]
    assert rows == [
        "| tube | 50.0 ± 10.0 (3) |  | 20.0 (1) | 40.0 (1) | 50.0 (1) |  |",
        "| none | 25.0 (1) |  |  |  |  |  |",
        "| tube | 0.500 (1) |  |  |  |  | 120 (1) |  |",
        "| frame | 50.0 ± 35.4 (2) |  |  |  |  |  |",
    ]
    assert text.index("### moving_objects_demo: 500 steps") < text.index("2,000 steps of pre")
    assert "Chance: 12.5%." in text and "](c.png)" in text
    assert "device a device; jax 1; commit abc; date 2026-01-01; 3.5 hours" in text


def test_a_record_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for record in (*finetuned("tube", (0.1, 0.2)), made("tube", 0, "finetune", top1=0.3)):
        comparison.add(path, record)
    found = [(record["seed"], record["figures"]["top1"]) for record in comparison.read(path)]
    assert found == [(1, 0.2), (0, 0.3)] and len(json.loads(path.read_text())) == 2
    path.write_text('[{"method": "tube"}]')
    with pytest.raises(comparison.PageError, match="c.json is no file of records"):
        comparison.read(path)


def test_the_page_of_the_repository_is_made_from_its_figures() -> None:
    results, page = ROOT / "docs/comparison.json", ROOT / "docs/results.md"
    records, text = comparison.read(results), page.read_text()
    tables = comparison.tables(records, "comparison.png")
    assert comparison.between_markers(text, tables, comparison.begin(page, results), page) == text
    with Image.open(ROOT / "docs/comparison.png") as picture:  # another Pillow writes other letters
        assert picture.size == comparison.draw(records).size
