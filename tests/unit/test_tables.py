"""Tables are whole or not there, and no change to their bytes goes unseen."""

import json
import multiprocessing
import os
import threading

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_tspin.run.tables import (
    DamagedTable,
    TableWriter,
    open_groups,
    read_metadata,
    read_table,
    write_table,
)

TABLE = pa.table({"row": [0, 1, 2], "text": ["", "zwei", "三"], "ids": [[1, 2], [], [3]]})
METADATA = {"rows": 3, "name": 'a "quoted" ü', "checksum": "0" * 64, "nested": {"a": [1, None]}}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("written") / "table.parquet"
    write_table(path, TABLE, METADATA)
    return path.read_bytes()


def test_a_table_reads_back(tmp_path):
    path = tmp_path / "new" / "table.parquet"
    assert write_table(path, TABLE, METADATA) is True
    assert read_table(path) == (TABLE, METADATA)
    assert read_table(path, ["ids"])[0] == TABLE.select(["ids"])
    assert read_metadata(path) == read_metadata(path, verify=False) == METADATA
    assert write_table(path, TABLE.slice(1), {}) is True, "it is replaced"
    assert read_table(path) == (TABLE.slice(1), {})
    assert os.listdir(path.parent) == ["table.parquet"]


@given(
    metadata=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_metadata(tmp_path_factory, metadata):
    path = tmp_path_factory.mktemp("table") / "table.parquet"
    write_table(path, TABLE, {"it": metadata, "checksum": metadata})
    assert read_metadata(path) == {"it": metadata, "checksum": metadata}


def test_many_groups(tmp_path):
    path = tmp_path / "table.parquet"
    groups = [
        pa.table(
            {"row": list(range(n, n + n % 3))}, TABLE.schema.empty_table().select(["row"]).schema
        )
        for n in range(200)
    ]
    with TableWriter(path, groups[0].schema) as writer:
        for group in groups:
            writer.write(group)
        assert not path.exists()
        assert writer.close({"groups": 200})
    assert read_table(path) == (pa.concat_tables(groups).combine_chunks(), {"groups": 200})
    with open_groups(path) as file:
        assert file.num_row_groups == 200
        assert file.read_row_group(8).to_pydict() == {"row": [8, 9]}


@pytest.mark.parametrize("folder", ["a=b", "iteration=0/c d", "%41", "ü"])
def test_any_name_of_a_folder(tmp_path, folder):
    path = tmp_path / folder / "x=1.parquet"
    write_table(path, TABLE, METADATA)
    assert read_table(path) == (TABLE, METADATA)


@settings(max_examples=300)
@given(data=st.data())
def test_a_changed_byte_is_found(tmp_path_factory, written, data):
    """Wherever it is: in the data, the names of columns, the metadata, the checksums."""
    place = data.draw(st.integers(0, len(written) - 1))
    altered = bytearray(written)
    altered[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("altered") / "table.parquet"
    path.write_bytes(altered)
    assert_damaged(path)


def test_every_bit_counts(tmp_path, written):
    path = tmp_path / "table.parquet"
    for place in range(len(written)):
        altered = bytearray(written)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        with pytest.raises(DamagedTable, match=r"table\.parquet cannot be read"):
            read_metadata(path)


def test_a_truncated_file_is_found(tmp_path, written):
    path = tmp_path / "table.parquet"
    for length in range(len(written)):
        path.write_bytes(written[:length])
        with pytest.raises(DamagedTable, match=r"table\.parquet cannot be read"):
            read_metadata(path)
    for more in (b"\0", b"PAR1", written):
        path.write_bytes(written + more)
        if more != written:
            assert_damaged(path)


def assert_damaged(path):
    with pytest.raises(DamagedTable, match=r"table\.parquet cannot be read"):
        read_metadata(path)
    with pytest.raises(DamagedTable, match=r"table\.parquet cannot be read"):
        read_table(path)


def test_what_is_no_table_of_ours(tmp_path):
    path = tmp_path / "table.parquet"
    assert_damaged(path)
    path.mkdir()
    assert_damaged(path)
    path.rmdir()
    pa.parquet.write_table(TABLE, path)
    assert_damaged(path)
    path.write_text(json.dumps(METADATA))
    assert_damaged(path)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("groups", [0, 1])
def test_a_writer_that_fails_leaves_nothing(tmp_path, groups):
    path = tmp_path / "table.parquet"
    write_table(path, TABLE, METADATA)
    with pytest.raises(RuntimeError, match="stopped"), TableWriter(path, TABLE.schema) as writer:
        for _ in range(groups):
            writer.write(TABLE)
        raise RuntimeError("stopped")
    del writer
    assert os.listdir(tmp_path) == ["table.parquet"]
    assert read_table(path) == (TABLE, METADATA)


def test_a_group_of_another_schema(tmp_path):
    path = tmp_path / "table.parquet"
    with pytest.raises(ValueError, match="schema"), TableWriter(path, TABLE.schema) as writer:
        writer.write(TABLE.select(["row"]))
    assert os.listdir(tmp_path) == []


def test_the_first_writer_wins(tmp_path):
    path = tmp_path / "table.parquet"
    assert write_table(path, TABLE, {"writer": 1}, replace=False) is True
    assert write_table(path, TABLE, {"writer": 2}, replace=False) is False
    assert read_metadata(path) == {"writer": 1}
    assert os.listdir(tmp_path) == ["table.parquet"]


def race(path, number, barrier, outcomes):
    with TableWriter(path, TABLE.schema, replace=False) as writer:
        writer.write(TABLE)
        barrier.wait()
        outcomes.put((number, writer.close({"writer": number})))


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_of_many_writers_at_once_one_wins(tmp_path, kind):
    context = multiprocessing.get_context("fork")
    for attempt in range(8):
        path = tmp_path / str(attempt) / "table.parquet"
        barrier, outcomes = context.Barrier(4), context.Queue()
        start = context.Process if kind == "processes" else threading.Thread
        writers = [start(target=race, args=(path, n, barrier, outcomes)) for n in range(4)]
        for writer in writers:
            writer.start()
        won = [number for number, won in (outcomes.get(timeout=20) for _ in writers) if won]
        for writer in writers:
            writer.join()
        assert len(won) == 1
        assert read_table(path) == (TABLE, {"writer": won[0]})
        assert os.listdir(path.parent) == ["table.parquet"]
