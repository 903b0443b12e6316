"""An index with a joint part: built in one pass, in any number of shards."""

import itertools
from pathlib import Path

import knowing
import numpy as np
import pytest
from jointly import FIXED, SHARDS, Made, check_same, files_of, held_out_of, manifest_of

from imgray.artifacts.folder import Folder
from imgray.artifacts.manifest import read_manifest
from imgray.engine.fan_out import search_shards
from imgray.engine.index import build_index
from imgray.engine.joint import as_vectors
from imgray.engine.search import SearchEngine
from imgray.engine.settings import (
    VerifyConfig,
)
from imgray.engine.shards import open_parts
from imgray.engine.verify import verify

pytestmark = pytest.mark.usefixtures("knowing_jobs")


@pytest.mark.parametrize("shards", SHARDS)
def test_the_joint_part_lies_beside_the_other_and_ids_are_stored_once(
    indexes: dict[int, str], plain: str, made: Made, shards: int
) -> None:
    manifest, files = manifest_of(indexes[shards]), files_of(indexes[shards])
    assert {entry.name for entry in manifest.files} == files.keys() - {"manifest.json"}
    parts = [f"shard-{n:05d}.faiss" for n in range(shards)]
    assert {name for name in files if name.startswith("joint/")} == {
        *(f"joint/{name}" for name in ("codebooks.safetensors", "frequency.safetensors", *parts)),
        *(f"joint/model/{name}" for name in ("manifest.json", knowing.WEIGHTS)),
        "joint/model/carried/text/words.json",
    }
    assert manifest.about["joint"] == {
        "model": made.model, "fingerprint": "print 0", "dim": knowing.DIM
    }  # fmt: skip
    model = read_manifest(Folder(made.model), "model")
    assert manifest.made_from[made.model] == model.digest
    if shards == 3:  # all else is as it would be without
        bare = files_of(plain)
        assert {n: files[n] for n in bare.keys() - FIXED} == {
            n: bare[n] for n in bare.keys() - FIXED
        }
        assert "joint" not in manifest_of(plain).about
    assert all(
        not one.faults for one in verify(VerifyConfig(artifacts=[indexes[shards]])).artifacts
    )


def test_its_words_and_frequencies_do_not_depend_on_the_shards(indexes: dict[int, str]) -> None:
    one, three = (files_of(uri) for uri in indexes.values())
    for name in ("joint/codebooks.safetensors", "joint/frequency.safetensors"):
        assert one[name] == three[name]


def test_a_text_ranks_by_the_dot_product_with_every_picture(
    opened: dict[int, SearchEngine], indexes: dict[int, str], made: Made, tmp_path: Path
) -> None:
    """Up to the code; all lists are visited."""
    every = str(tmp_path / "every")
    build_index(made.config(every, shards=3, joint_probes=5))
    joint, held_out = knowing.load(made.model), held_out_of(made.config(every))
    pictures, asked = joint.pictures(made.vectors), made.texts(*range(0, 40, 3))
    for text, hits in zip(asked, SearchEngine(every).search_texts(asked, 40), strict=True):
        exact = pictures @ joint.texts([text])[0]
        assert sorted(hits.ids) == sorted(made.ids)
        known = ~np.isin(hits.positions, held_out)  # the others may lie beyond the code's range
        away = np.abs(hits.scores - exact[hits.positions])
        assert away[known].max() < 0.01
        assert [made.ids[n] for n in hits.positions] == hits.ids
        assert hits.scores.tolist() == sorted(hits.scores, reverse=True)
    found = [hits.ids[0] for hits in opened[3].search_texts(asked, 1)]
    assert (
        np.mean([made.ids[int(t.split()[0])] == id for t, id in zip(asked, found, strict=True)])
        > 0.5
    )


def test_texts_rank_alike_in_any_number_of_shards(
    opened: dict[int, SearchEngine], indexes: dict[int, str], made: Made
) -> None:
    asked = made.texts(0, 7, 13, 39)
    vectors = as_vectors(knowing.load(made.model).texts(asked))
    for top, prefix in itertools.product((1, 5, 40), ("", "a/")):
        one, three = (o.search_texts(asked, top, prefix) for o in opened.values())
        for a, b in zip(one, three, strict=True):
            check_same(a, b)
            assert all(id.startswith(prefix) for id in a.ids)
    for uri in indexes.values():
        fanned = search_shards(Folder(uri), manifest_of(uri), vectors, 40, "text")
        for a, b in zip(fanned, opened[1].search_texts(asked, 40), strict=True):
            check_same(a, b)


def test_some_shards_can_be_opened_alone(indexes: dict[int, str], made: Made) -> None:
    folder, manifest = Folder(indexes[3]), manifest_of(indexes[3])
    parts = open_parts(folder, manifest, [1])
    assert parts.keys() == {"image", "text"}
    assert parts["text"].shards[0].images is parts["image"].shards[0].images
    assert [shard.offset for shard in parts["text"].shards] == [16]
    assert open_parts(folder, manifest, None, ["text"]).keys() == {"text"}
