"""Giving memory back: mapped pages when it is short, and what a heap keeps after a bundle is opened.

A bundle's pages can always be read from storage again, so they may go at any time; it costs reading them again. Tables
of which single rows are read go first, and out of the page cache too. Weights are read for every token: only their
place in this process is given up, and a page that the kernel still holds comes back without reading.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable, Sequence

from gemma_edge.runtime.formats.file_range import FileRange
from gemma_edge.runtime.memory.reading import FileMapping, file_mappings, read_memory


def relieve(limit_bytes: int, tables: Sequence[FileRange], weights: Sequence[FileRange]) -> None:
    """Bring the process below `limit_bytes` as far as mapped pages can: tables first, weights if that is not enough."""
    release_pages(tables)
    drop_from_page_cache(tables)
    if read_memory().total_bytes > limit_bytes:
        release_pages(weights)


def release_pages(ranges: Iterable[FileRange]) -> None:
    """Take the mapped pages of these file ranges out of this process; page tables and RssFile shrink at once.

    Only mappings that were never written are touched: MADV_DONTNEED would lose the changes. That they may be written
    says nothing; ONNX Runtime maps its weights so. The caller keeps the ranges mapped meanwhile, or their addresses
    could belong to something else by then.
    """
    _advise(ranges, mmap.MADV_DONTNEED, [mapping for mapping in file_mappings() if not mapping.changed_bytes])


def read_single_pages(ranges: Iterable[FileRange]) -> None:
    """From now on a missing page of these mapped ranges is read alone, without what lies around it in the file.

    Where memory just holds what is used, reading ahead pushes it out: E4B's packed weights lie between those they were
    packed from, and in 3 GiB decoding fell to 0.2 tokens per second.
    """
    _advise(ranges, mmap.MADV_RANDOM, file_mappings())


def _advise(ranges: Iterable[FileRange], advice: int, mappings: Iterable[FileMapping]) -> None:
    """madvise for the pages of these file ranges in these mappings."""
    libc = ctypes.CDLL(None)
    wanted = [(str(item.path.resolve()), item.offset, item.offset + item.nbytes) for item in ranges]
    for mapping in mappings:
        first = mapping.offset_bytes
        for wanted_path, begin, stop in wanted:
            low, high = max(first, begin), min(first + mapping.size_bytes, stop)
            if mapping.path != wanted_path or low >= high:
                continue
            low -= low % mmap.PAGESIZE
            address = mapping.address + low - first
            # Refused for locked memory only, which somebody wants to stay.
            libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(high - low), advice)


def drop_from_page_cache(ranges: Iterable[FileRange]) -> None:
    """Let the kernel forget the pages of these ranges that no process has mapped."""
    for item in ranges:
        descriptor = os.open(item.path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, item.offset, item.nbytes, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def trim_heap() -> None:
    """Give the system back what opening a bundle has freed: 3 MiB for E2B, which glibc's heap would keep for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)
