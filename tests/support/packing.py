"""Pack folders into every kind of archive, friendly and hostile, for the tests of reading them."""

import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import py7zr
import pyzipper

TAR_MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}
PASSWORD = b"open sesame"


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pack(path: Path, members: Mapping[str, bytes], password: bytes | None = None) -> Path:
    """Write an archive of the kind that its name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = next(end for end in (*TAR_MODES, ".zip", ".7z") if path.name.endswith(end))
    if suffix == ".zip" and password is not None:
        with pyzipper.AESZipFile(path, "w", zipfile.ZIP_DEFLATED, encryption=pyzipper.WZ_AES) as archive:
            archive.setpassword(password)
            for name, data in members.items():
                archive.writestr(name, data)
    elif suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    elif suffix == ".7z":
        quick = [
            {"id": py7zr.FILTER_LZMA2, "preset": 1},
            *([{"id": py7zr.FILTER_CRYPTO_AES256_SHA256}] if password else []),
        ]
        with py7zr.SevenZipFile(path, "w", filters=quick, password=password and password.decode()) as archive:
            for name, data in members.items():
                archive.writestr(data, name)
    else:
        path.write_bytes(tar_bytes(members, TAR_MODES[suffix]))
    return path


def tar_bytes(members: Mapping[str, bytes], mode: str = "w", special: tarfile.TarInfo | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.GNU_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if special:
            archive.addfile(special)
    return out.getvalue()


def packed_bytes(suffix: str, members: Mapping[str, bytes], folder: Path) -> bytes:
    """An archive as bytes, to put into another."""
    return pack(folder / f"inner{suffix}", members).read_bytes()


def special_member(kind: str) -> tarfile.TarInfo:
    """A link or a device, as tar stores it."""
    info = tarfile.TarInfo("special_image.nii")
    info.type = {
        "symlink": tarfile.SYMTYPE,
        "hardlink": tarfile.LNKTYPE,
        "device": tarfile.CHRTYPE,
        "pipe": tarfile.FIFOTYPE,
    }[kind]
    info.linkname = "/etc/passwd" if kind.endswith("link") else ""
    return info


def zip_symlink(path: Path, members: Mapping[str, bytes]) -> Path:
    pack(path, members)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("link_image.nii")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return path


def seven_zip_symlink(path: Path, members: Mapping[str, bytes], folder: Path) -> Path:
    os.symlink("a_image.nii", folder / "link_image.nii")
    for name, data in members.items():
        (folder / name).write_bytes(data)
    with py7zr.SevenZipFile(path, "w", dereference=False) as archive:
        for name in (*members, "link_image.nii"):
            archive.write(folder / name, name)
    return path


def seven_zip_named(path: Path, name: str, data: bytes) -> Path:
    """A 7z whose member has a name that py7zr itself would not write: same length, put in by hand."""
    stand_in = "x" * len(name)
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.set_encoded_header_mode(False)
        archive.writestr(data, stand_in)
    raw = bytearray(path.read_bytes())
    old, new = stand_in.encode("utf-16-le"), name.encode("utf-16-le")
    at = raw.index(old)
    raw[at : at + len(old)] = new
    offset, size = struct.unpack("<QQ", raw[12:28])
    raw[28:32] = struct.pack("<I", zlib.crc32(bytes(raw[32 + offset : 32 + offset + size])))
    raw[8:12] = struct.pack("<I", zlib.crc32(bytes(raw[12:32])))
    path.write_bytes(raw)
    return path


def zip_with_false_size(path: Path, data: bytes, declared: int) -> Path:
    """One deflated member `a_image.nii` that says it is smaller than it is, its checksum that of the first bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a_image.nii", data)
    raw = bytearray(path.read_bytes())
    central = raw.index(b"PK\x01\x02")
    raw[22:26] = raw[central + 24 : central + 28] = struct.pack("<I", declared)
    path.write_bytes(raw)
    return path


def gzip_of_zeros(n_bytes: int) -> bytes:
    """A gzip stream of zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(n_bytes >> 20)]
    return b"".join([*parts, packer.flush()])


def xz_of_zeros(n_bytes: int) -> bytes:
    return lzma.compress(bytes(n_bytes))


def zip_crypto(path: Path, name: str, data: bytes, password: bytes) -> Path:
    """A zip with the traditional PKWARE encryption (APPNOTE 6.1)."""
    keys = [0x12345678, 0x23456789, 0x34567890]

    def crc(value: int, byte: int) -> int:
        return (value >> 8) ^ TABLE[(value ^ byte) & 0xFF]

    def update(byte: int) -> None:
        keys[0] = crc(keys[0], byte)
        keys[1] = (keys[1] + (keys[0] & 0xFF)) & 0xFFFFFFFF
        keys[1] = (keys[1] * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = crc(keys[2], keys[1] >> 24)

    def encrypt(plain: bytes) -> bytes:
        out = bytearray()
        for byte in plain:
            temp = (keys[2] | 2) & 0xFFFF
            out.append(byte ^ (((temp * (temp ^ 1)) >> 8) & 0xFF))
            update(byte)
        return bytes(out)

    for byte in password:
        update(byte)
    checksum = zlib.crc32(data)
    body = encrypt(bytes(11) + bytes([checksum >> 24]) + data)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(name, body)
    raw = bytearray(path.read_bytes())
    central = raw.index(b"PK\x01\x02")
    for at, flags in ((14, 6), (central + 16, central + 8)):
        raw[at : at + 4] = struct.pack("<I", checksum)
        raw[at + 8 : at + 12] = struct.pack("<I", len(data))
        raw[flags] |= 1
    path.write_bytes(raw)
    return path


def _crc_table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = (n >> 1) ^ (0xEDB88320 if n & 1 else 0)
        table.append(n)
    return table


TABLE = _crc_table()
