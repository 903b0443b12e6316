"""How many threads a search takes: of FAISS one for few queries, all for many; of numpy one."""

from collections.abc import Iterator
from threading import Thread

import faiss
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from imgray.retrieval.backend import FEW, limit_numpy, threads_for

MANY = 2


@pytest.fixture(autouse=True)
def many_threads() -> Iterator[None]:
    """FAISS and BLAS take two threads, which other tests do without."""
    before = faiss.omp_get_max_threads()
    with threadpool_limits(MANY, user_api="blas"):
        faiss.omp_set_num_threads(MANY)
        yield
    faiss.omp_set_num_threads(before)


def _taken() -> tuple[int, int]:
    """Threads of FAISS, and of numpy."""
    (blas,) = [one for one in threadpool_info() if "numpy" in one["filepath"]]
    return faiss.omp_get_max_threads(), blas["num_threads"]


@pytest.mark.parametrize(("queries", "threads"), [(1, 1), (FEW, 1), (FEW + 1, MANY)])
def test_few_queries_take_one_thread(queries: int, threads: int) -> None:
    with threads_for(queries):
        assert _taken() == (threads, 1)
    assert _taken() == (MANY, MANY)


def test_an_error_puts_back_what_was() -> None:
    with pytest.raises(KeyError), threads_for(1):
        raise KeyError
    assert _taken() == (MANY, MANY)


def test_another_thread_leaves_what_belongs_to_the_process() -> None:
    found = []

    def search() -> None:
        faiss.omp_set_num_threads(MANY)
        with threads_for(1):
            found.append(_taken())
        found.append(_taken())

    other = Thread(target=search)
    other.start()
    other.join()
    assert found == [(1, MANY), (MANY, MANY)]
    assert _taken() == (MANY, MANY)


def test_a_process_that_only_searches_has_one_thread_of_numpy() -> None:
    limit_numpy()
    assert _taken() == (MANY, 1)
