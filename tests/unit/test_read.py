import csv
import io
import json
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from softlaunch.data import hub, json_array, parallel, read, text_encoding
from softlaunch.errors import ArgumentError, DataError

ROWS = [
    {"content": "类型#裤*版型#宽松", "summary": "宽松的裤子，\n舒适。"},
    {"content": '图案#"条纹", 线条', "summary": "条纹\u2028很好看😀"},
    {"content": "a\tb", "summary": "c"},
]


@pytest.fixture
def read_rows(tmp_path):
    def call(path, **options):
        columns = {"prompt_column": "content", "response_column": "summary", "cache_dir": tmp_path / "cache"}
        return read.read_rows(path, **columns | options)

    return call


@pytest.fixture
def write(tmp_path):
    def call(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return call


def json_lines(rows, end="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def delimited(rows, delimiter):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def message_of(read_rows, path, **options):
    with pytest.raises(DataError) as caught:
        read_rows(path, **options)
    return str(caught.value)


def expected(rows):
    return [{"row_id": i, "prompt": row["content"], "response": row["summary"]} for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", json_lines(ROWS)),
        ("rows.json", json_lines(ROWS)),
        ("rows.json", json_lines(ROWS, end="\r\n\r\n")),
        ("rows.json", json_lines(ROWS).replace(', "summary"', ',\r"summary"')),
        ("rows.json", json.dumps(ROWS)),
        ("rows.jsonl", "\n" + json.dumps(ROWS, ensure_ascii=False, indent=2) + "\n"),
        ("rows.csv", delimited(ROWS, ",")),
        ("rows.tsv", delimited(ROWS, "\t")),
    ],
)
@pytest.mark.parametrize(
    ("encoding", "asked"), [("utf-8", "utf-8"), ("utf-8-sig", "UTF8"), ("gb18030", "gb18030"), ("utf-16", "utf-16")]
)
def test_text_formats_and_encodings_give_the_same_rows(read_rows, write, name, text, encoding, asked):
    dataset = read_rows(write(name, text, encoding), file_encoding=asked)
    assert dataset.to_list() == expected(ROWS)
    assert dataset.features["row_id"] == datasets.Value("int64")


def test_parquet_and_saved_dataset(read_rows, tmp_path):
    history = [[["问", "答"]], None, []]
    rows = [row | {"turns": turns} for row, turns in zip(ROWS, history, strict=True)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("rows.parquet", "saved"):
        dataset = read_rows(tmp_path / name, history_column="turns")
        assert dataset["prompt"][:] == [row["content"] for row in ROWS]
        assert dataset["history"][:] == [[["问", "答"]], [], []]


def test_history_in_json_and_csv(read_rows, write):
    turns = [["95", "上下水管温差怎么样啊？"], ["风扇", ""]]
    rows = [{"content": "a", "summary": "b", "h": turns}, {"content": "c", "summary": "d", "h": None}]
    missing = {"content": "e", "summary": "f"}
    dataset = read_rows(write("a.jsonl", json_lines([*rows, missing])), history_column="h")
    assert dataset["history"][:] == [turns, [], []]
    cells = [rows[0] | {"h": json.dumps(turns)}, rows[1] | {"h": ""}]
    assert read_rows(write("a.csv", delimited(cells, ",")), history_column="h")["history"][:] == [turns, []]


def test_array_is_the_same_however_it_is_cut_into_blocks(write, monkeypatch):
    values = [{"a": 'é😀\n"\\', "b": [-1.5e-7, 123456, None, True]}, 123456, -7.25, "x" * 50, [], {}, -float("inf")]
    for text in (json.dumps(values), json.dumps(values, indent=3), json.dumps(values, ensure_ascii=True, indent=0)):
        for block in (1, 2, 3, 7, 40):
            monkeypatch.setattr(json_array, "_BLOCK_CHARACTERS", block)
            found = list(json_array.array_values("x", io.StringIO(text)))
            assert [value for _, value in found] == values
    lines = [line for line, _ in json_array.array_values("x", io.StringIO("[\n{},\n\n{\n},{}\n]"))]
    assert lines == [2, 4, 5]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('[{"content": "a"},\n {"content": "b" "c"}]', 2, "Expecting ',' delimiter"),
        ('[{"content": "a"},\n {"content": "b', 2, "Unterminated string"),
        ('[{"content": "a"}\n\n {"content": "b"}]', 3, "expected , or ], found {"),
        ('[{"content": "a"},\n', 2, "Expecting value"),
        ('[{"content": "a"}\n', 2, "expected , or ], the file ends"),
        ('[{"content": "a"}]\n[]', 2, "something follows"),
        ('[]\n[{"content": "a"}]', 2, "something follows"),
    ],
)
def test_broken_array_names_the_line(read_rows, write, text, line, problem):
    path = write("rows.json", text)
    message = message_of(read_rows, path, skip_bad_rows=True)
    assert message.startswith(f"{path}:{line}: broken JSON: ")
    assert problem in message


# --- bad rows

BAD_LINES = [
    '{"content": "good", "summary": "good"}',
    '{"content": "", "summary": "x"}',
    '{"content": "x", "summary": 95}',
    "",
    '{"content": "x", "summary": "broken',
    '{"content": "x"}',
    '["content", "x"]',
    '{"content": "x", "summary": null}',
    '{"content": "half \\ud83d", "summary": "x"}',
    '{"content": "x", "summary": " \\n"}',
    '{"content": "good", "summary": "last"}',
]


def test_all_bad_rows_are_listed_by_kind_and_line(read_rows, write):
    path = write("rows.jsonl", "\n".join(BAD_LINES))
    message = message_of(read_rows, path)
    assert message.splitlines()[0] == f"{path}: 8 of 10 rows cannot be used."
    for line, kind, detail in [
        (2, '1 × "content" is empty', ""),
        (3, '1 × "summary" is not a string', ': the number 95; as text: "95"'),
        (5, "1 × broken JSON", ": Invalid control character at, column 36"),
        (6, '1 × no "summary"', ""),
        (7, "1 × not a JSON object, such as {…}", ": found list"),
        (8, '1 × "summary" is null', ""),
        (9, '1 × "content" holds half a character (an unpaired surrogate, such as \\ud83d)', ""),
        (10, '1 × "summary" is empty', ""),
    ]:
        assert f"{kind}\n  {path}:{line}{detail}\n" in message
    assert message.endswith("Mend these rows, or set skip_bad_rows to drop them.")


def test_skip_bad_rows_drops_and_says_so_every_time(read_rows, write, caplog):
    path = write("rows.jsonl", "\n".join(BAD_LINES))
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        dataset = read_rows(path, skip_bad_rows=True)
        assert dataset["row_id"][:] == [0, 9]
        assert "dropped 8 of 10 rows" in caplog.text
        assert "1 × broken JSON" in caplog.text
    with pytest.raises(DataError):
        read_rows(path)


def test_no_usable_row_is_an_error_even_when_skipping(read_rows, write):
    path = write("rows.jsonl", '{"content": "", "summary": ""}\n')
    message = message_of(read_rows, path, skip_bad_rows=True)
    assert message.startswith(f"{path}: 1 of 1 rows")
    assert "skip_bad_rows" not in message


def test_only_the_first_five_of_a_kind_are_shown(read_rows, write):
    path = write("rows.jsonl", json_lines([ROWS[0]] + [{"content": "x", "summary": ""}] * 8))
    message = message_of(read_rows, path)
    assert message.count(f"{path}:") == 1 + 5
    assert "8 × " in message
    assert "and 3 more" in message


def test_empty_responses_are_kept_where_none_is_required(read_rows, write):
    rows = [{"content": "a", "summary": ""}, {"content": "b", "summary": None}, {"content": "c"}]
    path = write("rows.jsonl", json_lines(rows))
    assert read_rows(path, require_response=False)["response"][:] == ["", "", ""]
    with pytest.raises(DataError, match="3 of 3 rows"):
        read_rows(path)
    path = write("prompt.jsonl", json_lines([{"content": " ", "summary": ""}, {"content": "a", "summary": 1}]))
    assert message_of(read_rows, path, require_response=False).startswith(f"{path}: 2 of 2 rows")


@pytest.mark.parametrize(
    "history", ["text", [["only one"]], [["a", 1]], [{"q": "a"}], {"a": "b"}, [["a", "b", "c"]], 3]
)
def test_bad_history(read_rows, write, history):
    good = {"content": "x", "summary": "y", "h": []}
    path = write("rows.jsonl", json_lines([good, good | {"h": history}]))
    assert f'1 × "h" is no list of pairs of strings, [["question", "answer"], …]\n  {path}:2: ' in message_of(
        read_rows, path, history_column="h"
    )


def test_numbers_and_brackets_without_end_are_broken_json(read_rows, write):
    lines = ['{"content": ' + "9" * 5000 + "}", '{"content": ' + "[" * 100_000, '{"content": 1} 2']
    path = write("rows.jsonl", json_lines(ROWS) + "\n".join(lines))
    assert "3 × broken JSON" in message_of(read_rows, path)
    path = write("rows.json", "[" + lines[1])
    assert message_of(read_rows, path).startswith(f"{path}:1: broken JSON: ")


def test_broken_csv_rows_name_their_first_line(read_rows, write):
    path = write("rows.csv", 'content,summary\n"two\nlines",ok\na,b,c\n"x" y,z\ngood,row\n"never closed,row\nx,y\n')
    message = message_of(read_rows, path)
    assert f"{path}:4: 3 instead of 2" in message
    assert f"{path}:5: ',' expected after '\"'" in message
    assert f"{path}:7: unexpected end of data" in message
    assert message.startswith(f"{path}: 3 of 5 rows")
    assert read_rows(path, skip_bad_rows=True)["prompt"][:] == ["two\nlines", "good"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_missing_column_names_the_nearest(read_rows, write, name):
    text = delimited(ROWS, ",") if name.endswith("csv") else json_lines(ROWS)
    path = write(name, text)
    message = message_of(read_rows, path, prompt_column="contents")
    assert message == (
        f'{path} has no column "contents". Its columns are: "content", "summary". Did you mean "content"?'
    )
    message = message_of(read_rows, path, history_column="turns")
    assert message.endswith('"summary". Leave history_column out if no row has a history.')


def test_wrong_encoding_names_line_guess_and_remedy(read_rows, write):
    text = '{"content": "ascii", "summary": "x"}\r\n' + json_lines(ROWS, end="\r\n")
    path = write("gbk.json", text, "gbk" if "😀" not in text else "gb18030")
    message = message_of(read_rows, path)
    assert message.startswith(
        f"{path}:2: byte 0xc0 is not utf-8. Read as gb18030 the line begins: " + '{"content": "类型#裤'
    )
    assert message.endswith('set file_encoding to "gb18030".')
    utf8 = write("utf8.json", json_lines(ROWS))
    assert 'set file_encoding to "utf-8"' in message_of(read_rows, utf8, file_encoding="ascii")
    assert 'set file_encoding to "utf-16"' in message_of(read_rows, write("utf16.json", text, "utf-16"))


def test_damaged_line_in_utf8_is_not_taken_for_another_encoding(read_rows, write):
    lines = json_lines(ROWS * 20).encode().splitlines(keepends=True)
    lines[39] = lines[39].replace("类".encode(), "类".encode()[:2])
    path = write("rows.jsonl", b"".join(lines))
    assert message_of(read_rows, path).startswith(
        f"{path}:40: byte 0xe7 is not utf-8, though the text around it is: the line is damaged"
    )
    whole = json_lines([ROWS[0]] * 20).encode()
    cut = write("cut.jsonl", whole[: whole.rindex("适".encode()) + 1])
    assert message_of(read_rows, cut).startswith(f"{cut}:20: byte 0xe9 is not utf-8, though the text around it is")


UNFINISHED = {"utf-8": b"\xe6\x9d", "gb18030": b"\xcc", "utf-16-le": b"\x61"}


@pytest.mark.parametrize("encoding", UNFINISHED)
def test_undecodable_byte_is_found_in_whatever_block_it_lies(write, monkeypatch, encoding):
    text = json_lines(ROWS)
    broken = text[: text.rindex("条纹")].encode(encoding) + UNFINISHED[encoding]
    for block in (1, 2, 5, 64, 1 << 20):
        monkeypatch.setattr(text_encoding, "_BLOCK_BYTES", block)
        message = str(text_encoding.encoding_error(write("rows.jsonl", broken), text_encoding.codec_name(encoding)))
        assert f"rows.jsonl:2: byte 0x{UNFINISHED[encoding][0]:02x} is not {encoding}" in message


def test_unknown_encoding(read_rows, write):
    for name in ("gbkk", "hex"):
        with pytest.raises(ArgumentError, match=f'file_encoding is "{name}".*gb18030'):
            read_rows(write("rows.jsonl", json_lines(ROWS)), file_encoding=name)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.json", "", "is empty"),
        ("a.json", "\ufeff \n", "is empty"),
        ("a.json", "[]", "has no rows"),
        ("a.csv", "content,summary\n", "has no rows"),
        ("a.csv", "content,content\n", 'names the column "content" more than once'),
        ("a.json", '{"model_name_or_path": "m", "train_file": "t.json"}', 'argument file.*"t.json"'),
        ("a.json", '{\n "model_name_or_path": "m",\n "train_file": "t.json"\n}', 'argument file.*"t.json"'),
        ("a.json", '{\n "version": 1,\n "data": []\n}', 'single JSON object with "version", "data"'),
        ("a.json", '{\n "content": "a"\n}\n{\n "content": "b"\n}', "a row spans several lines"),
        ("a.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("a.txt", "标题\t3\n", "unknown format: it begins with '标题"),
        ("a.xlsx", b"PK\x03\x04rest", "compressed"),
        ("a.parquet", b"PAR1rest", "damaged Parquet"),
    ],
)
def test_not_a_data_file(read_rows, write, name, text, problem):
    path = write(name, text)
    with pytest.raises(DataError, match=problem) as caught:
        read_rows(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_directories(read_rows, write, tmp_path):
    write("train.json", json_lines(ROWS))
    assert 'there is "train.json"' in message_of(read_rows, tmp_path / "trian.json")
    assert "does not exist" in message_of(read_rows, tmp_path / "no" / "such.json")
    assert "is a directory" in message_of(read_rows, tmp_path)
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    assert f"such as {tmp_path / 'splits' / 'train'}" in message_of(read_rows, tmp_path / "splits")


def test_max_rows_reads_no_further(read_rows, write):
    path = write("rows.jsonl", json_lines(ROWS) + "broken\n" * 200)
    assert read_rows(path, max_rows=2).to_list() == expected(ROWS[:2])
    assert "200 × broken JSON" in message_of(read_rows, path)


def test_changed_content_is_read_anew_and_same_content_is_not(read_rows, write, monkeypatch):
    path = write("rows.jsonl", json_lines(ROWS))
    first = read_rows(path)
    write("rows.jsonl", json_lines(ROWS[::-1]))
    assert read_rows(path).to_list() == expected(ROWS[::-1])
    copy = write("copy.jsonl", json_lines(ROWS))
    monkeypatch.setattr(read, "records", None)  # whatever reads again now fails
    again = read_rows(copy)
    assert again.to_list() == expected(ROWS)
    assert again._fingerprint == first._fingerprint


def test_the_suffix_belongs_to_what_is_cached(read_rows, write):
    text = "content,summary\na,b\n"
    assert read_rows(write("rows.csv", text))["prompt"][:] == ["a"]
    assert 'Its columns are: "content,summary".' in message_of(read_rows, write("rows.tsv", text))


def test_a_failed_read_leaves_no_rows_behind(read_rows, write, tmp_path):
    path = write("rows.jsonl", json_lines([*ROWS, {"content": "x"}]))
    message_of(read_rows, path)
    assert [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()] in ([], ["lock"])


def test_processes_that_start_at_once_read_the_same_rows(write, tmp_path):
    path = write("rows.jsonl", json_lines(ROWS * 500))
    program = (
        "import sys; from softlaunch.data.read import read_rows\n"
        "rows = read_rows(sys.argv[1], prompt_column='content', response_column='summary', cache_dir=sys.argv[2])\n"
        "print(len(rows), rows._fingerprint)"
    )
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate()[0] for process in running]
    assert answers[0].startswith("1500 ")
    assert answers == [answers[0]] * 3


@pytest.mark.parametrize("columns", [{}, {"history_column": "history"}])
def test_stretches_of_a_large_file_give_what_the_whole_gives(tmp_path, monkeypatch, columns):
    """Bad rows, blank lines, CRLF, a byte order mark, a history in some stretches alone: all as in one process."""
    lines = [json.dumps({"prompt": f"问{i}", "response": f"答{i}"}, ensure_ascii=False) for i in range(400)]
    lines[7], lines[250], lines[390] = "", '{"prompt": ', json.dumps({"prompt": "x", "response": 3})
    lines[300] = json.dumps({"prompt": "x", "response": "y", "history": [["a", "b"]]})
    file = tmp_path / "rows.json"
    file.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    monkeypatch.setattr(parallel, "MIN_BYTES", 1)

    def rows_of(workers: int, **options):
        cache = tmp_path / f"{workers}{options}"
        return read.read_rows(
            file,
            prompt_column="prompt",
            response_column="response",
            num_workers=workers,
            cache_dir=cache,
            **columns,
            **options,
        )

    assert rows_of(3, skip_bad_rows=True).to_list() == rows_of(1, skip_bad_rows=True).to_list()
    assert len(rows_of(3, skip_bad_rows=True)) == 397
    messages = []
    for workers in (1, 3):
        with pytest.raises(DataError) as error:
            rows_of(workers)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "rows.json:251: " in messages[0]
    assert not list(tmp_path.glob("*/**/*incomplete*"))


def test_wrong_encoding_in_a_later_stretch_is_named(tmp_path, monkeypatch):
    file = tmp_path / "rows.json"
    good = '{"prompt": "问", "response": "答"}\n'.encode()
    file.write_bytes(good * 50 + '{"prompt": "问", "response": "答"}\n'.encode("gb18030"))
    monkeypatch.setattr(parallel, "MIN_BYTES", 1)
    with pytest.raises(DataError, match=r"rows\.json:51: byte 0x"):
        read.read_rows(file, prompt_column="prompt", response_column="response", num_workers=2, cache_dir=tmp_path)


def test_a_name_on_the_hub_stands_for_its_rows(read_rows, monkeypatch, tmp_path):
    """The hub itself is not asked here: `load_dataset` answers for it."""
    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    known = {"owner/many-v1.5": splits, "owner/one": {"train": splits["train"]}}

    def load_dataset(name):
        if name not in known:
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return datasets.DatasetDict(known[name])

    hub._load.cache_clear()
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert list(read_rows("owner/one")) == expected(ROWS)
    assert list(read_rows("owner/many-v1.5/test")) == expected(ROWS[:1])
    assert "holds several splits: train, test. Give one, such as owner/many-v1.5/train" in message_of(
        read_rows, "owner/many-v1.5"
    )
    assert 'has no column "contend"' in message_of(read_rows, "owner/one", prompt_column="contend")
    assert "no such file or directory, and no dataset of this name" in message_of(read_rows, "owner/none")
    assert "does not exist" in message_of(read_rows, "data/rows.jsonn")  # a file's name is not looked for there
