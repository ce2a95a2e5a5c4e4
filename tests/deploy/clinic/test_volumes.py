"""Of a state's tar stream, label images can be left out without unpacking it."""

import io
import tarfile
from collections.abc import Iterator

from deploy.clinic.volumes import without


def chunks(data: bytes, size: int = 700) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def test_label_images_are_left_out_and_all_else_stays_with_owner_and_mode() -> None:
    packed = io.BytesIO()
    files = {"cairn/identity/key.pem": b"k" * 3000, "cairn/labels/s/big.tif": b"x" * 5000, "cairn/labels.toml": b"t"}
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for folder in ("cairn", "cairn/identity", "cairn/labels"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode, entry.uid = tarfile.DIRTYPE, 0o700, 10001
            tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uid = len(content), 0o600, 10001
            tar.addfile(entry, io.BytesIO(content))
    kept = b"".join(without(chunks(packed.getvalue()), "labels"))
    with tarfile.open(fileobj=io.BytesIO(kept)) as tar:
        entries = {entry.name: entry for entry in tar}
        assert set(entries) == {"cairn", "cairn/identity", "cairn/identity/key.pem", "cairn/labels.toml"}
        assert tar.extractfile("cairn/identity/key.pem").read() == files["cairn/identity/key.pem"]  # type: ignore[union-attr]
        assert (entries["cairn/identity/key.pem"].uid, entries["cairn/identity/key.pem"].mode) == (10001, 0o600)
