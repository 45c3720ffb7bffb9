"""What `adamae_jax.prepare.verify` says of the ids of a dataset."""

from pathlib import Path

import pytest

from adamae_jax.errors import UserError
from adamae_jax.prepare.verify import verify
from tests.data.fixtures import serialize, video, write_dataset


def test_records_with_one_id_are_told_through_all_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def records(*names: str) -> list[bytes]:
        return [serialize(video(0), name) for name in names]

    good, bad = tmp_path / "good", tmp_path / "bad"
    write_dataset(good, {"train": records("a", "b"), "validation": records("c")}, with_masks=False)
    verify(good, num_workers=1)
    assert "is sound" in capsys.readouterr().out
    splits = {"train": records("a", "b", "a"), "validation": records("b")}
    write_dataset(bad, splits, with_masks=False)
    with pytest.raises(UserError, match="bad has 2 records with the id of another one"):
        verify(bad)
    assert "validation" in capsys.readouterr().out  # the table, nevertheless
