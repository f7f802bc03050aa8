"""Bodies as they were crawled in, titles and stripped lines out: a kernel over the UTF-8 of a whole batch."""

from typing import NamedTuple

import numba
import numpy as np
import pyarrow as pa

BLOCK = 16  # bytes


class Lines(NamedTuple):
    """Titles and contents of the bodies that are long enough (`kept`), and the counts of all bodies."""

    titles: pa.StringArray  # [kept]
    contents: pa.StringArray  # [kept]
    kept: np.ndarray  # bool[bodies]
    title_chars: np.ndarray  # int64[bodies]
    chars: np.ndarray  # int64[bodies], of the content
    lines: np.ndarray  # int64[bodies], of the content


def split_lines(bodies: pa.StringArray, min_chars: int) -> Lines:
    """The first line of each body as its title and the other lines as its content, stripped as `str.strip` does, joined by
    LF. A line ends at LF, CR or CRLF; a line end at the end of a body begins no further line.

    Args: bodies: string array without nulls. min_chars: bodies with a content of fewer characters are not kept.
    """
    assert bodies.type == pa.string() and not bodies.null_count and not bodies.offset
    _, offsets, data = bodies.buffers()
    starts = np.frombuffer(offsets, np.int32, len(bodies) + 1)
    octets = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    titles, title_ends, contents, content_ends, *counts = _split_lines(octets, starts, min_chars)
    kept = counts[0]
    return Lines(_strings(titles, title_ends), _strings(contents, content_ends), kept, *counts[1:])


def keep_lines(text: pa.StringArray, offsets: np.ndarray, keep: np.ndarray) -> tuple[pa.StringArray, pa.ListArray]:
    """Documents with only some of their lines.

    Args: text: string[documents], lines joined by LF; offsets: int64[documents + 1] into keep: bool[lines].
    Returns: string[documents], the kept lines joined by LF; and list<int32>[documents], the numbers of the kept lines.
    """
    starts = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1].astype(np.int64)
    data = np.frombuffer(text.buffers()[2] or b"", np.uint8)
    kept, ends = _keep_lines(data, starts, offsets, keep)
    content = pa.StringArray.from_buffers(len(text), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(kept))
    before = np.concatenate([[0], np.cumsum(keep)])[offsets]  # kept lines before each document
    numbers = np.flatnonzero(keep) - np.repeat(offsets[:-1], np.diff(before))
    return content, pa.ListArray.from_arrays(pa.array(before, pa.int32()), pa.array(numbers, pa.int32()))


def _strings(octets: np.ndarray, ends: np.ndarray) -> pa.StringArray:
    return pa.StringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(octets))


@numba.njit(cache=True, nogil=True)
def _space_at(octets, i):  # type: ignore[no-untyped-def]
    """The bytes of the white space that begins at byte i of valid UTF-8; 0 where there is none."""
    first = octets[i]
    if first < 0x80:
        return 1 if first == 0x20 or 9 <= first <= 13 or 28 <= first <= 31 else 0
    if first == 0xC2:
        return 2 if octets[i + 1] == 0x85 or octets[i + 1] == 0xA0 else 0
    if first == 0xE1:  # U+1680
        return 3 if octets[i + 1] == 0x9A and octets[i + 2] == 0x80 else 0
    if first == 0xE2:
        second, third = octets[i + 1], octets[i + 2]
        if second == 0x80:  # U+2000 to 200A, 2028, 2029, 202F
            return 3 if third <= 0x8A or third == 0xA8 or third == 0xA9 or third == 0xAF else 0
        return 3 if second == 0x81 and third == 0x9F else 0  # U+205F
    if first == 0xE3:  # U+3000
        return 3 if octets[i + 1] == 0x80 and octets[i + 2] == 0x80 else 0
    return 0


@numba.njit(cache=True, nogil=True)
def _line_ends(octets):  # type: ignore[no-untyped-def]
    """The positions of all LF and CR. Blocks without one are passed over by instructions that take many bytes at a time."""
    total = 0
    for octet in octets:
        total += (octet == 10) | (octet == 13)
    positions = np.empty(total + BLOCK, np.int64)
    count = 0
    whole = len(octets) - len(octets) % BLOCK
    for start in range(0, whole, BLOCK):
        block = octets[start : start + BLOCK]
        found = np.uint8(0)
        for i in range(BLOCK):
            found |= np.uint8((block[i] == 10) | (block[i] == 13))
        if found:
            for i in range(BLOCK):
                positions[count] = start + i
                count += (block[i] == 10) | (block[i] == 13)
    for i in range(whole, len(octets)):
        positions[count] = i
        count += (octets[i] == 10) | (octets[i] == 13)
    return positions[:count]


@numba.njit(cache=True, nogil=True)
def _strip(octets, start, end):  # type: ignore[no-untyped-def]
    """Where the stripped text begins and ends."""
    while start < end:
        size = _space_at(octets, start)
        if not size:
            break
        start += size
    while start < end:
        last = end - 1
        while octets[last] & 0xC0 == 0x80:
            last -= 1
        if not _space_at(octets, last):
            break
        end = last
    return start, end


@numba.njit(cache=True, nogil=True)
def _append(octets, start, end, out, size):  # type: ignore[no-untyped-def]
    """Writes octets[start:end] to out[size:]. Returns the new size."""
    source, target = octets[start:end], out[size : size + end - start]
    for i in range(len(source)):  # an assignment of slices would look for overlaps first
        target[i] = source[i]
    return size + len(source)


@numba.njit(cache=True, nogil=True)
def _chars(octets):  # type: ignore[no-untyped-def]
    count = 0
    for octet in octets:
        count += octet & 0xC0 != 0x80
    return count


@numba.njit(cache=True, nogil=True)
def _split_lines(octets, starts, min_chars):  # type: ignore[no-untyped-def]
    """What `split_lines` returns. Lines that need no stripping are copied together, with the LF between them."""
    bodies = len(starts) - 1
    titles, contents = np.empty(starts[-1], np.uint8), np.empty(starts[-1], np.uint8)
    title_ends, content_ends = np.zeros(bodies + 1, np.int32), np.zeros(bodies + 1, np.int32)
    kept = np.zeros(bodies, np.bool_)
    title_chars, content_chars = np.zeros(bodies, np.int64), np.zeros(bodies, np.int64)
    content_lines = np.zeros(bodies, np.int64)
    line_ends = _line_ends(octets)
    titles_size = contents_size = number = following = 0
    for body in range(bodies):
        at, end = np.int64(starts[body]), np.int64(starts[body + 1])
        title_size, size = titles_size, contents_size
        lines = -1  # the title is none
        run_start = run_end = end
        while at < end or lines < 0:
            stop = end
            if following < len(line_ends) and line_ends[following] < end:
                stop = line_ends[following]
                following += 1
            first, last = at, stop
            if at < stop and not (33 <= octets[at] <= 126 and 33 <= octets[stop - 1] <= 126):
                first, last = _strip(octets, at, stop)
            if lines < 0:
                title_size = _append(octets, first, last, titles, title_size)
            elif lines and first == run_end + 1 and octets[run_end] == 10:
                run_end = last
            else:
                if lines:
                    size = _append(octets, run_start, run_end, contents, size)
                    contents[size] = 10
                    size += 1
                run_start, run_end = first, last
            lines += 1
            at = stop + 1
            if at < end and octets[stop] == 13 and octets[at] == 10:
                at += 1
                following += 1
        size = _append(octets, run_start, run_end, contents, size)
        title_chars[body] = _chars(titles[titles_size:title_size])
        chars = content_chars[body] = _chars(contents[contents_size:size])
        content_lines[body] = lines if chars else 0
        if chars and chars >= min_chars:
            kept[body] = True
            number += 1
            titles_size, contents_size = title_size, size
            title_ends[number] = titles_size
            content_ends[number] = contents_size
    titles, contents = titles[:titles_size], contents[:contents_size]
    title_ends, content_ends = title_ends[: number + 1], content_ends[: number + 1]
    return titles, title_ends, contents, content_ends, kept, title_chars, content_chars, content_lines


@numba.njit(cache=True, nogil=True)
def _keep_lines(data, starts, offsets, keep):  # type: ignore[no-untyped-def]
    """The bytes of the kept lines, and int64[documents + 1] where each document begins in them."""
    kept = np.empty(starts[-1] - starts[0], np.uint8)
    ends = np.zeros(len(starts), np.int64)
    size = 0
    for document in range(len(starts) - 1):
        line = offsets[document]
        first = True
        position = starts[document]
        while line < offsets[document + 1]:
            end = position
            while end < starts[document + 1] and data[end] != 10:
                end += 1
            if keep[line]:
                if not first:
                    kept[size] = 10
                    size += 1
                kept[size : size + end - position] = data[position:end]
                size += end - position
                first = False
            position = end + 1
            line += 1
        ends[document + 1] = size
    return kept[:size], ends
