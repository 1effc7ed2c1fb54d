"""CloudpickleSerializer: any Python object as an argument or a result, large ones without copies.

Lambdas, closures and classes of `__main__` travel by value. The memory of numpy arrays, pandas
frames, `bytes`, `bytearray` and `memoryview` is not copied into the pickle if it is large: pickle's
protocol 5 hands it out as buffers, which FrameFormatter passes to the queue. Arrays and memoryviews
then live in the queue's shared memory at the other side; `bytes` and `bytearray` own their memory
in Python, so they are copied there once.

Unpickling runs what the pickle says. Whoever can write into a queue can run code in its workers, as
with taskiq's own PickleSerializer; the queue's directory belongs to its user alone.
"""

import io
import pickle
from typing import TYPE_CHECKING, Any

import cloudpickle
from taskiq.abc.serializer import TaskiqSerializer

from taskiq_supervise.broker.payload import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Buffer

_PROTOCOL = 5
_NATIVE = frozenset("cbB?hHiIlLqQnNefdP")
"""Formats that a memoryview can be cast to."""


class CloudpickleSerializer(TaskiqSerializer):
    """For `broker.with_serializer()`, at clients and workers alike."""

    def dumpb(self, value: Any) -> bytes:
        """Raises what pickling the value raises: TypeError, PicklingError, AttributeError."""
        return self.dump(value, None)

    def loadb(self, value: bytes) -> Any:
        """Raises what unpickling raises: UnpicklingError, ImportError, AttributeError, …"""
        return self.load(value)

    def dump(self, value: Any, buffers: "list[memoryview] | None") -> bytes:
        """Pickles a value; what is large and contiguous in it goes to `buffers`, if given."""
        stream = io.BytesIO()
        views: dict[int, memoryview] = {}

        def keep_inside(buffer: pickle.PickleBuffer) -> bool:
            view = views.pop(id(buffer), None)
            raw = buffer.raw() if view is None else view
            if raw.nbytes < LARGE:
                return True
            assert buffers is not None
            buffers.append(raw)
            return False

        _Pickler(stream, views, None if buffers is None else keep_inside).dump(value)
        return stream.getvalue()

    def load(self, data: "Buffer", buffers: "Iterable[Buffer]" = ()) -> Any:
        """The reverse of `dump`, with the same buffers in the same order."""
        return _Unpickler(io.BytesIO(data), buffers=buffers).load()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """pickle itself asks only classes that know of buffers for them; these three do not.

    views: what lies under the PickleBuffers of memoryviews, by id. Their raw() would do as well, if
    CPython before 3.12.7 did not crash when it collects a memoryview that another one is a view of
    (gh-77894).
    """

    def __init__(
        self,
        stream: io.BytesIO,
        views: dict[int, memoryview],
        buffer_callback: "Callable[[pickle.PickleBuffer], bool] | None",
    ) -> None:
        super().__init__(stream, protocol=_PROTOCOL, buffer_callback=buffer_callback)
        self._views = views

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is bytes or kind is bytearray:
            return (kind.__name__, pickle.PickleBuffer(obj)) if len(obj) >= LARGE else None
        if kind is memoryview:
            form = _format(obj)
            is_flat = obj.c_contiguous and obj.nbytes
            view = obj.cast("B") if is_flat else memoryview(obj.tobytes())
            buffer = pickle.PickleBuffer(view)
            self._views[id(buffer)] = view
            return "memoryview", buffer, form, obj.shape
        return None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("bytes", buffer):
                return bytes(buffer)
            case ("bytearray", buffer):
                return bytearray(buffer)
            case ("memoryview", buffer, form, shape):
                view = memoryview(buffer).cast("B")
                # Python has no cast to a shape with a zero in it.
                return view.cast(form, shape) if view.nbytes else view.cast(form)
        raise pickle.UnpicklingError(f"an unknown kind of buffer: {pid!r}")


def _format(view: memoryview) -> str:
    form = view.format.removeprefix("@")
    if form not in _NATIVE:
        raise pickle.PicklingError(
            f"a memoryview of format {view.format!r} cannot be sent; send the array it is a view of"
        )
    return form
