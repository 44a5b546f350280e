"""Writes the parquet files in this folder, and the values that pyarrow reads from them (expected.json).

    pip install pyarrow==26.0.1 && python make.py
"""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

here = pathlib.Path(__file__).parent

texts = [f"Row {i}: the {'quick' if i % 3 else 'slow'} fox — čtvrtek 木曜日 {i * i}." for i in range(40)]
texts[7] = ""
texts[11] = None
texts[12] = " = Heading = \n"
table = pa.table({"id": pa.array(range(40), pa.int64()), "text": pa.array(texts), "score": [i / 7 for i in range(40)]})
# Several row groups, dictionary pages, snappy: like the hub's own conversions.
pq.write_table(table, here / "text.parquet", row_group_size=16, compression="snappy")
pq.write_table(table, here / "text-gzip-v2.parquet", compression="gzip", use_dictionary=False, data_page_version="2.0")

chats = [
    [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer {i}.\n" * (i + 1)}]
    for i in range(9)
]
message = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
table = pa.table({"prompt_id": [f"{i:04x}" for i in range(9)], "messages": pa.array(chats, message)})
pq.write_table(table, here / "chat.parquet", compression="zstd")

# The column name of `ptb`.
sentences = [f"mr. <unk> of n words said so {i} times" for i in range(12)]
pq.write_table(pa.table({"sentence": sentences}), here / "sentences.parquet", compression="snappy")

columns = {"chat.parquet": "messages", "sentences.parquet": "sentence"}
read = {
    path.name: pq.read_table(path).column(columns.get(path.name, "text")).to_pylist()
    for path in sorted(here.glob("*.parquet"))
}
(here / "expected.json").write_text(json.dumps(read, ensure_ascii=False, indent=1) + "\n")
