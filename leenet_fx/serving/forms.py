"""Files in forms, read from memory: multipart/form-data."""

from __future__ import annotations

from fastapi import HTTPException
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from leenet_fx.errors import first_line


def file_of_form(content_type: str, body: bytes) -> bytes:
    """Return the content of the only file in a form.

    Args:
        content_type: header of the request.
        body: of the request.

    Raises:
        HTTPException: 400 for a damaged form, or one without exactly one file.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise HTTPException(400, "The form is damaged: it names no boundary.")
    reader = _Reader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise HTTPException(400, f"The form is damaged: {first_line(error)}") from error
    if not reader.ended:
        raise HTTPException(400, "The form is damaged: it has no end.")
    if len(reader.files) != 1:
        raise HTTPException(400, f"Expected one file in the form, got {len(reader.files)}.")
    return reader.files[0]


class _Reader:
    """Collects the parts that have a file name."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self.ended = False
        self._start()

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._start,
            "on_header_field": self._field,
            "on_header_value": self._value,
            "on_header_end": self._header,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _start(self) -> None:
        self._name, self._content = b"", b""
        self._is_file = False
        self._parts: list[bytes] = []

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _value(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._is_file = b"filename" in parse_options_header(self._content)[1]
        self._name, self._content = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._parts.append(data[start:end])

    def _end(self) -> None:
        if self._is_file:
            self.files.append(b"".join(self._parts))

    def _finish(self) -> None:
        self.ended = True
