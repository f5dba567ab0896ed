"""Worker processes share the cores: several of them never start more threads than there are cores."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import multiprocess
import pytest
import torch

from larf_curate.models import threads
from larf_curate.models.loading import load_reader
from larf_curate.models.source import ModelSource
from larf_curate.scoring.workers import workers

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def threads_after_loading(folder):
    load_reader(ModelSource(model_id=folder, dtype="float32"), (0,), device="cpu")
    return torch.get_num_threads()


@pytest.mark.parametrize(("count", "share"), [(1, 8), (3, 2), (8, 1), (20, 1)])
def test_workers_get_equal_shares_of_at_least_one_core(monkeypatch, count, share):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_cores", lambda: 8)
    threads.share_cores(count)
    assert os.environ["OMP_NUM_THREADS"] == str(share)


def test_a_limit_that_the_user_set_is_kept(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 8)
    for before, after in (("1", "1"), ("6", "4"), ("3,2", "3"), ("dynamic", "4")):
        monkeypatch.setenv("OMP_NUM_THREADS", before)
        threads.share_cores(2)
        assert os.environ["OMP_NUM_THREADS"] == after


def test_the_first_process_is_no_worker():
    assert threads.worker_threads() is None


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_workers_of_scoring_compute_with_their_share_of_the_cores(tiny_llama, monkeypatch, count):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with workers(count, None) as pool:
        assert pool.submit(threads_after_loading, str(tiny_llama)).result() == max(1, CORES // count)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_of_the_standard_library_that_know_no_share_compute_with_one_thread(tiny_llama, monkeypatch, method):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert pool.submit(threads_after_loading, str(tiny_llama)).result() == 1


def test_forked_workers_compute_with_one_thread_whatever_was_asked_for(tiny_llama, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with multiprocess.get_context("fork").Pool(1) as pool:
        assert pool.apply(threads_after_loading, [str(tiny_llama)]) == 1
