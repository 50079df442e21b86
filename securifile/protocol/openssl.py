"""What a TLS connection asks of OpenSSL, by pyOpenSSL's connection but not by its methods: those cost a call or three more for each record,
and a `bytes` of its own.

**Small pieces keep the interpreter's lock.** A call by way of cffi lets go of it. Beside a thread that is busy it is not at once to be had
again: the other one has taken it back before this one was given a processor, and only `sys.getswitchinterval` ends that. A heartbeat
and its answer were some twenty such calls, of a microsecond each. So what is at most a record is encrypted, decrypted and copied
without letting go; what is more gives others their time.

**Memory that nobody needs is given back.** OpenSSL keeps what is to be sent, and what came, in buffers that grow and never shrink: a
third of a mebibyte each, for a connection that has moved one large piece and may now rest for an hour.

This is the one module that knows how pyOpenSSL's connection works inside; `tests/protocol/test_tls_layer.py` fails when those parts
change (known good: pyOpenSSL 26.4).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.python.failure import Failure

WRITE_BYTES_MAX = 256 * 1024
"""Given to OpenSSL at once. Its records in memory stay within the processor's cache; 1 MiB is slower."""
READ_BYTES_MAX = 256 * 1024
"""Taken from the socket at once."""
PIECE_BYTES_MAX = 512 * 1024
"""What a thread of a worker receives before it hashes, writes and passes it on: each of these steps has its price in the interpreter. With
256 KiB 16 uploads at once cost a tenth more; with 1 MiB as much.
"""
SCRATCH_BYTES = 320 * 1024
"""Room for a piece as records: 22 bytes more for each 16 KiB."""
KEEP_LOCK_BYTES_MAX = 16 * 1024
"""A record: encrypted in four microseconds, which is less than letting go of the interpreter's lock and taking it again may cost."""

_library: Any = vars(SSL)["_lib"]
_ffi: Any = vars(SSL)["_ffi"]


def prepare(context: SSL.Context) -> None:
    """Make one write of a large buffer one call, and have connections at rest keep no room for a record.

    The first is what pyOpenSSL turns off: with SSL_MODE_ENABLE_PARTIAL_WRITE, which it sets, each record is a write and a copy.
    """
    _library.SSL_CTX_clear_mode(context._context, _library.SSL_MODE_ENABLE_PARTIAL_WRITE)
    context.set_mode(_library.SSL_MODE_RELEASE_BUFFERS)


def _keeping_lock(function: Any, *arguments: Any) -> Callable[..., int]:
    """A function of the library, giving an int, whose calls keep the interpreter's lock."""
    made: Callable[..., int] = ctypes.PYFUNCTYPE(ctypes.c_int, *arguments)(_address(function))
    return made


def _address(pointer: Any) -> int:
    return int(_ffi.cast("uintptr_t", pointer))


_SSL_read = _keeping_lock(_library.SSL_read, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_SSL_write = _keeping_lock(_library.SSL_write, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)
_SSL_get_error = _keeping_lock(_library.SSL_get_error, ctypes.c_void_p, ctypes.c_int)
_BIO_read = _keeping_lock(_library.BIO_read, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_BIO_write = _keeping_lock(_library.BIO_write, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int)


class Scratch(threading.local):
    """Memory that OpenSSL writes to and Python reads from: one for each thread, since nothing stays in it."""

    def __init__(self) -> None:
        self.memory = _ffi.new("char[]", SCRATCH_BYTES)
        self.address = _address(self.memory)
        self.view = memoryview(_ffi.buffer(self.memory))
        self.piece: Any = None
        self.piece_view = memoryview(b"")

    def room_for_piece(self) -> tuple[Any, memoryview]:
        """More memory, in which what was received stays until its thread receives again."""
        if self.piece is None:
            self.piece = _ffi.new("char[]", PIECE_BYTES_MAX)
            self.piece_view = memoryview(_ffi.buffer(self.piece))
        return self.piece, self.piece_view


scratch = Scratch()

_nowhere: Any = _ffi.new("char **")
"""For the address of a buffer's content, which nobody asks for."""


class Records:
    """One connection's records, made and read in memory. Its caller sees to it that one thread at a time uses it."""

    def __init__(self, connection: SSL.Connection) -> None:
        """Args:
        connection: without a socket. It is kept, so that what the addresses are of stays.
        """
        self._connection: Any = connection
        self._ssl = _address(connection._ssl)
        self._take_addresses()

    def _take_addresses(self) -> None:
        self._into = _address(self._connection._into_ssl)
        self._out_of = _address(self._connection._from_ssl)

    def write(self, piece: bytes | memoryview) -> None:
        """Make records of a piece: at least a byte, at most `WRITE_BYTES_MAX`. Raises `SSL.Error`; in a handshake, `SSL.WantReadError`."""
        if isinstance(piece, bytes) and len(piece) <= KEEP_LOCK_BYTES_MAX:
            written = _SSL_write(self._ssl, piece, len(piece))
            if written <= 0:
                self._connection._raise_ssl_error(self._connection._ssl, written)
        else:
            self._connection.send(piece)

    def seal(self, *, few: bool = False) -> int:
        """Bring records that were made into this thread's scratch memory; how many bytes, or not above zero when there are none.

        Args:
            few: whether they are of a small piece, if there are any.
        """
        if few:
            return _BIO_read(self._out_of, scratch.address, SCRATCH_BYTES)
        count: int = _library.BIO_read(self._connection._from_ssl, scratch.memory, SCRATCH_BYTES)
        return count

    def came(self, octets: bytes) -> None:
        """Records, or parts of them, have come."""
        if len(octets) <= KEEP_LOCK_BYTES_MAX:
            _BIO_write(self._into, octets, len(octets))
        else:
            self._connection.bio_write(octets)

    def came_to_scratch(self, count: int) -> None:
        """So many bytes of records have come, and are in this thread's scratch memory."""
        _library.BIO_write(self._connection._into_ssl, scratch.memory, count)

    def kept_bytes(self) -> int:
        """How many bytes of records have come that were not read yet."""
        count: int = _library.BIO_get_mem_data(self._connection._into_ssl, _nowhere)
        return count + int(_library.SSL_pending(self._connection._ssl))

    def read_into(self, memory: Any, room: int) -> tuple[int, Failure | None]:
        """Put what was said, as far as its records are here, into `memory`: how many bytes, and why nothing can come after them, if so."""
        connection, taken = self._connection, 0
        address = _address(memory)
        # For each record, 16 KiB. Who gets a full one has got a large piece, more of which will follow.
        while taken < room:
            if taken < KEEP_LOCK_BYTES_MAX:
                count = _SSL_read(self._ssl, address + taken, room - taken)
            else:
                count = _library.SSL_read(connection._ssl, memory + taken, room - taken)
            if count <= 0:
                return taken, self._end(count)
            taken += count
        return taken, None

    def _end(self, result: int) -> Failure | None:
        """Why a reading gave nothing; None: there is only nothing yet."""
        if _SSL_get_error(self._ssl, result) == _library.SSL_ERROR_WANT_READ:
            return None
        try:
            self._connection._raise_ssl_error(self._connection._ssl, result)
        except SSL.WantReadError:
            return None
        except SSL.Error as error:
            # Its traceback would hold the connection, which holds the failure: both would stay until the garbage collector looks.
            return Failure(error.with_traceback(None))
        return None

    def shrink(self) -> None:
        """Have buffers of the size of what is in them."""
        into = _smaller(self._connection._into_ssl)
        out_of = _smaller(self._connection._from_ssl)
        # The old ones belong to the connection, which frees them.
        _library.SSL_set_bio(self._connection._ssl, into, out_of)
        self._connection._into_ssl, self._connection._from_ssl = into, out_of
        self._take_addresses()


def _smaller(buffer: Any) -> Any:
    """A new buffer with what is in this one, which is empty then."""
    made = _library.BIO_new(_library.BIO_s_mem())
    while (count := _library.BIO_read(buffer, scratch.memory, SCRATCH_BYTES)) > 0:
        _library.BIO_write(made, scratch.memory, count)
    return made
