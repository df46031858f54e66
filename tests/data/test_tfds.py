"""TFDS datasets are built here, locally, and read in other processes: TensorFlow stays out."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("tensorflow_datasets")

BUILDER = """
    import sys
    import numpy as np
    import tensorflow_datasets as tfds

    class TinyDocs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
            features = tfds.features.FeaturesDict({"text": text, "other": text, "n": number})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"text": f"document {i}: été " * 20, "other": f"other {i} " * 20, "n": i}

    TinyDocs(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
"""

READER = """
    import sys
    from jaxllm import data
    from jaxllm.errors import UserError

    try:
        corpus = data.prepare(sys.argv[1], "bytes", seq_len=32, text_column=sys.argv[2] or None)
    except UserError as error:
        print("error:", error)
    else:
        splits = corpus.train, corpus.valid
        documents = [s.document(i) for s in splits for i in range(s.num_documents)]
        texts = [corpus.tokenizer.decode(ids) for ids in documents]
        print(len(texts), sum("document" in t for t in texts), sum("été" in t for t in texts))
    assert "tensorflow" not in sys.modules
"""


def python(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    script = folder / "build.py"  # TFDS looks for the builder's own source file.
    script.write_text(textwrap.dedent(BUILDER))
    subprocess.run([sys.executable, script, folder / "data"], check=True, capture_output=True)
    assert list(folder.glob("data/**/*.array_record*"))
    return folder / "data"


@pytest.mark.parametrize(
    ("source", "column", "printed"),
    [
        ("tfds:tiny_docs", "", "20 20 20"),
        ("tfds:tiny_docs:1.0.0", "", "20 20 20"),
        ("tfds:tiny_docs:test", "other", "3 0 0"),
        ("tfds:tiny_docs:1.0.0:test", "", "3 3 3"),
        ("tfds:tiny_docs:valid", "", "unknown split of 'tfds:tiny_docs' 'valid'"),
        ("tfds:tiny_docs", "texts", "unknown text column 'texts'; did you mean 'text'"),
        ("tfds:tiny_docs", "n", "expected text: name another with text_column"),
        ("tfds:tiny_dosc", "", "no dataset 'tiny_dosc'"),
    ],
)
def test_a_local_dataset_is_read_without_tensorflow(source, column, printed, datasets):
    assert printed in python(READER, source, column, TFDS_DATA_DIR=str(datasets))
