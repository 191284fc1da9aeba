"""Decides which runs return memory to the system. Plain code: sizes in, decisions out."""

from collections import deque

_RECENT = 8  # runs by which it is judged what is usual
_REPEATED = 2  # of them that are about as large make a run usual
_CLOSE = 2  # times as large, or less: about as large


class Footprint:
    """The sizes of the last runs of a session, in bytes of its inputs.

    onnxruntime keeps the memory of its largest run for the next ones. A run that returns what it used takes up to a
    third longer, because the next one must be given the memory again. So only two kinds of runs do: one that is much
    larger than what is usual, and the first one after which nothing as large as what is kept has run for a while. So
    does the run after each: the outputs of the one before are in that memory until they are in their slots.

    One writer: the session's thread.
    """

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._kept = 0  # bytes of the largest run whose memory is kept
        self._again = False

    def returns(self, nbytes: int) -> bool:
        """Records a run that begins. Returns whether it is to return memory once it has ended."""
        recent = self._recent
        settled = len(recent) == _RECENT
        unusual = settled and sum(_CLOSE * each >= nbytes for each in recent) < _REPEATED
        recent.append(nbytes)
        left = settled and self._kept > _CLOSE * max(recent)
        again, self._again = self._again, unusual or left
        if unusual or left:
            self._kept = 0
        else:
            self._kept = max(self._kept, nbytes)
        return unusual or left or again
