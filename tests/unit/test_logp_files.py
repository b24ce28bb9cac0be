"""Files of log-probabilities: whose they are, of which triplets, and those of earlier versions."""

import numpy as np
import pyarrow as pa
import pytest

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.logps import (
    Scores,
    all_logps,
    check_reference,
    logps_of_rows,
    read_scores,
    rows_to_score,
    write_scores,
)
from axolotl_tspin.run.tables import read_checksum, write_table


@pytest.fixture
def triplets(tmp_path):
    """Two files of triplets that answer the same prompts."""
    paths = tmp_path / "triplets.parquet", tmp_path / "others.parquet"
    for number, path in enumerate(paths):
        write_table(path, pa.table({"row": [number]}), {"prompts_fingerprint": "p"})
    return paths


def test_scores_of_another_policy_or_of_other_triplets_are_none(tmp_path, triplets):
    path, (ours, others) = tmp_path / "scores.parquet", triplets
    assert read_scores(path, ours, "a") is None
    write_scores(path, Scores(np.array([4, 1]), np.array([[1.0, 2, 3], [4, 5, 6]]), "a"), ours)
    kept = read_scores(path, ours, "a")
    assert kept.rows.tolist() == [1, 4] and kept.logps[0].tolist() == [4, 5, 6]
    assert read_scores(path, ours, "b") is None
    assert read_scores(path, others, "a") is None
    assert logps_of_rows(kept, [4]).tolist() == [[1, 2, 3]]
    assert logps_of_rows(kept, [2, 4]) is None


def test_scores_as_earlier_versions_wrote_them_are_read(tmp_path, triplets):
    path = tmp_path / "scores.parquet"
    logps = {f"{n}_logps": [-1.0] for n in ("annotated", "synthetic", "proto_synthetic")}
    table = pa.table({"row": [0], **logps})
    write_table(path, table, {"policy": "a", "prompts_fingerprint": "p"})
    assert read_scores(path, triplets[0], "a").logps.tolist() == [[-1, -1, -1]]
    write_table(path, table, {"policy": "a", "prompts_fingerprint": "other"})
    assert read_scores(path, triplets[0], "a") is None


def test_references_as_earlier_versions_wrote_them_are_read(tmp_path, triplets):
    path, (ours, others) = tmp_path / "reference.parquet", triplets
    table = pa.table(
        {"row": [0], "annotated": [-1.0], "synthetic": [-2.0], "proto_synthetic": [-3.0]}
    )
    write_table(path, table, {"policy": "a", "triplets": read_checksum(ours)})
    check_reference(path, ours, "a")
    assert all_logps(path).tolist() == [[-1, -2, -3]]
    with pytest.raises(TSpinError, match="log-probabilities under the policy a"):
        check_reference(path, ours, "b")
    with pytest.raises(TSpinError, match="computed for other triplets"):
        check_reference(path, others, "a")


def test_the_rows_to_score_are_spread_evenly():
    assert rows_to_score(10, "all").tolist() == list(range(10))
    assert rows_to_score(3, 5).tolist() == [0, 1, 2]
    some = rows_to_score(1001, 11)
    assert some[0] == 0 and some[-1] == 1000 and set(np.diff(some)) == {100}
    assert len(set(rows_to_score(1234, 1000).tolist())) == 1000
