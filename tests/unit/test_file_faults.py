"""Data files that cannot be loaded: the error names the file, the line and the fault."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from axolotl.utils.dict import DictDefault
from support.data import conversations, write_jsonl

from axolotl_tspin import TSpinPlugin
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.importing import import_run
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.data_sets import load_data
from axolotl_tspin.resolve.file_faults import first_fault

ROW = {"prompt": "é 2 + 3?", "response": "5", "synthetic": "6", "proto_synthetic": "7"}
GOOD = json.dumps(ROW, ensure_ascii=False).encode() + b"\n"
LIST = json.dumps([ROW] * 3, indent=1).encode()


def parquet(rows: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({key: [value] * rows for key, value in ROW.items()}), sink)
    return sink.getvalue().to_pybytes()


PARQUET = parquet(500)

FAULTS = [
    (
        "torn.jsonl",
        GOOD * 3 + b'{"prompt": "a", "resp\n' + GOOD,
        r"line 4: torn JSON at column 17 \(Unterminated string\)",
    ),
    ("end.jsonl", GOOD * 3 + b'{"prompt": "a", "resp', "line 4: torn JSON"),
    ("begin.jsonl", b'{"prompt": "a",\n' + GOOD * 2, "line 1: torn JSON"),
    ("alone.jsonl", b'{"prompt": "a", "resp', "line 1: torn JSON"),
    ("gap.jsonl", GOOD + b"\n\n{}}\n", "line 4: torn JSON"),
    (
        "half.jsonl",
        GOOD * 2 + b'{"prompt": "a \\ud83d b", "response": "c"}\n',
        r"line 3: a lone surrogate \(\\ud83d\)",
    ),
    (
        "bytes.jsonl",
        GOOD * 3 + b'{"prompt": "a \xff b", "response": "c"}\n',
        "line 4: byte 15 of the line, 0xff, is not UTF-8",
    ),
    ("list.jsonl", GOOD * 2 + b'["x"]\n', r'line 3: found \["x"\], expected an object'),
    ("number.jsonl", b"7\n" + GOOD, "line 1: found 7, expected an object"),
    ("document.json", LIST[:-20], "line 18: torn JSON"),
    ("items.json", b'[{"prompt": "a"}, 7]', "row 1: found 7, expected an object"),
    ("empty.jsonl", b"", "the file is empty"),
    ("blank.jsonl", b"\n \n", "the file has no rows"),
    ("nothing.json", b"[]", "the file has no rows"),
    ("empty.csv", b"", "the file is empty"),
    ("header.csv", b"prompt,response\n", "the file has no rows"),
    (
        "fields.csv",
        b'prompt,response\n"a\nb",c\na,b,c\n',
        "line 4: 3 fields, but the header has 2",
    ),
    ("bytes.csv", b"prompt,response\na,b\na,\xe9\n", "line 3: byte 3 of the line, 0xe9"),
    ("quote.csv", b'prompt,response\na,b\na,"b\n', "line 3: a row that begins here is torn"),
    ("empty.parquet", b"", "the file is empty"),
    ("torn.parquet", PARQUET[:-100], "not a whole parquet file"),
    ("changed.parquet", PARQUET[:4] + b"\xff" * 60 + PARQUET[64:], "not a whole parquet file"),
]


def entry(path, **keys) -> dict:
    return {"path": str(path), "type": "t_spin.instruction"} | keys


@pytest.mark.parametrize(("name", "content", "message"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_file_that_cannot_be_loaded_is_named_with_its_first_fault(
    tmp_path, name, content, message
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TSpinError, match=rf"^`datasets\[0\]`: {path}, {message}.*Mend the file"):
        load_data({}, DictDefault(entry(path)), "`datasets[0]`")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("good.jsonl", GOOD * 3 + b"\n" + GOOD),
        ("list.json", LIST),
        ("other_keys.jsonl", GOOD + b'{"prompt": 5, "extra": "\\ud83d\\ude00"}\n'),
        ("good.csv", b'prompt,response\n"a\nb",c\na\n'),
        ("good.parquet", PARQUET),
    ],
)
def test_a_file_that_can_be_loaded_has_no_fault(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert len(load_data({}, DictDefault(entry(path)), "`datasets[0]`")) > 0
    assert first_fault(path) is None


def test_files_of_a_folder_and_of_data_files_are_examined(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(GOOD)
    torn = folder / "b.jsonl"
    torn.write_bytes(GOOD + b'{"prompt')
    with pytest.raises(TSpinError, match=f"{torn}, line 2"):
        load_data({}, DictDefault(entry(folder)), "`datasets[0]`")
    named = entry(folder, data_files=[str(folder / "a.jsonl"), str(torn)], split="train")
    with pytest.raises(TSpinError, match=f"{torn}, line 2"):
        load_data({}, DictDefault(named), "`datasets[0]`")
    named["data_files"] = named["data_files"][:1]
    assert len(load_data({}, DictDefault(named), "`datasets[0]`")) == 1


def test_the_kind_of_a_file_may_be_named(tmp_path):
    path = tmp_path / "rows.data"
    path.write_bytes(GOOD + b"{")
    with pytest.raises(TSpinError, match=f"{path}, line 2"):
        load_data({}, DictDefault(entry(path, ds_type="json")), "`datasets[0]`")


def test_other_reasons_are_told_as_they_are(tmp_path):
    path = tmp_path / "good.jsonl"
    path.write_bytes(GOOD)
    with pytest.raises(TSpinError, match=r"cannot be loaded .*nowhere.*check `path`, `split`"):
        load_data({}, DictDefault(entry(path, split="nowhere")), "`datasets[0]`")


def test_every_command_that_reads_data_names_the_fault(tmp_path, make_yaml):
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.jsonl"
    good.write_bytes(GOOD * 2)

    def train(path):
        TSpinPlugin().register(DictDefault(yaml.safe_load(path.read_text())))

    for content in (GOOD * 2 + b'{"prompt": "\xff", "response": "a"}\n', GOOD * 2 + b"{\n"):
        bad.write_bytes(content)
        for command in (generate, import_run, train):
            path = make_yaml(datasets=[entry(bad)])
            with pytest.raises(TSpinError, match=rf"datasets\[0\]`: {bad}, line 3"):
                command(path)
        path = make_yaml(datasets=[entry(good)], test_datasets=[entry(bad)])
        for command in (import_run, train):
            with pytest.raises(TSpinError, match=rf"`test_datasets\[0\]`: {bad}, line 3"):
                command(path)
    annotated = write_jsonl(tmp_path / "annotated.jsonl", conversations(2))
    chat = {"path": str(annotated), "type": "t_spin.chat_template"}
    with pytest.raises(TSpinError, match=rf"`test_datasets\[0\]`: {bad}, line 3"):
        generate(make_yaml(datasets=[chat], test_datasets=[entry(bad)]))
    assert not (tmp_path / "out" / "t_spin.json").exists()
