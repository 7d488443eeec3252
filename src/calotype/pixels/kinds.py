"""Which files are pictures, by their names and first bytes; and what those are called that can't be read.

A folder's pictures are what Pillow and its plugins decode, by suffix. Formats of Pillow's are left out that are no
photos: EPS and WMF are programs, which opening a picture shall not run; MPEG, BUFR, GRIB and HDF5 it knows by name
alone; FITS and IPTC are data. Suffixes that mostly mean something else (.bw, .im, .rgb, .vst) do not tell either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath

from PIL import Image

from calotype.pixels.plugins import PLUGINS, lacking

REFUSED_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Of Pillow's, those that nothing is opened as."""

HEAD = 512
"""First bytes of a file that tell its kind."""

_NO_PHOTOS = REFUSED_FORMATS | {"FITS", "GBR", "IPTC", "SPIDER", "XVTHUMB"}
_AMBIGUOUS = frozenset({".bw", ".cur", ".icb", ".im", ".ras", ".rgb", ".rgba", ".vda", ".vst"})
_MORE_JPEG = frozenset({".jfi", ".jif", ".jps", ".mpo", ".pjp", ".pjpeg"})  # which Pillow does not list


@dataclass(frozen=True)
class Kind:
    """What a file is that can't be read as it is.

    Attributes:
        title: with an article where it has one.
        advice: what to do.
    """

    title: str
    advice: str

    @property
    def said(self) -> str:
        """For messages on one file."""
        return f"is {self.title}; {self.advice}"


_EXPORT = "export it as PNG, TIFF or JPEG"
_RAW = Kind("a camera raw file", "develop it, and export it as TIFF, PNG or JPEG")
_VIDEO = Kind("a video", "export frames of it as PNG")
_SVG = Kind("an SVG drawing", "export it as PNG in the size that is wanted")
_PDF = Kind("a PDF document", "export its pages as PNG")
_PROGRAM = Kind("PostScript", "export it as PNG in the size that is wanted")
_METAFILE = Kind("a Windows metafile", "export it as PNG in the size that is wanted")
_EXR = Kind("OpenEXR", "its light has no upper end: tone-map it, and export it as PNG or TIFF")
_HDR = Kind("Radiance HDR", "its light has no upper end: tone-map it, and export it as PNG or TIFF")
_PSB = Kind("a large Photoshop document (PSB)", _EXPORT)
_LAYERS = Kind("a file with layers", _EXPORT)
_JXR = Kind("JPEG XR", _EXPORT)
_BPG = Kind("BPG", _EXPORT)
_FLIF = Kind("FLIF", _EXPORT)
_DJVU = Kind("a DjVu document", "export its pages as PNG")
_DICOM = Kind("DICOM", _EXPORT)
_FITS = Kind("FITS", "export it as PNG or TIFF, with a black and a white")
_SCIENCE = Kind("scientific data, no picture", "export what it shows as PNG or TIFF")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


RAW_SUFFIXES = _words(
    """.3fr .ari .arw .bay .cap .cr2 .cr3 .crw .dcr .dcs .dng .drf .eip .erf .fff .gpr .iiq .k25 .kdc .mdc .mef .mos
    .mrw .nef .nrw .orf .ori .pef .ptx .pxn .qtk .r3d .raf .raw .rw2 .rwl .rwz .sr2 .srf .srw .x3f"""
)

_NAMED: Mapping[str, Kind] = {
    **dict.fromkeys(RAW_SUFFIXES, _RAW),
    **dict.fromkeys(
        _words(
            """.3g2 .3gp .asf .avi .flv .m2ts .m2v .m4v .mkv .mov .mp4 .mpe .mpeg .mpg .mts .ogv .webm .wmv"""
        ),
        _VIDEO,
    ),
    **dict.fromkeys((".svg", ".svgz"), _SVG),
    **dict.fromkeys((".ai", ".pdf"), _PDF),
    **dict.fromkeys((".eps", ".epsf", ".epsi", ".ps"), _PROGRAM),
    **dict.fromkeys((".emf", ".emz", ".wmf", ".wmz"), _METAFILE),
    **dict.fromkeys((".hdr", ".rgbe"), _HDR),
    **dict.fromkeys((".afphoto", ".clip", ".kra", ".ora", ".pdn", ".procreate", ".sai", ".xcf"), _LAYERS),
    **dict.fromkeys((".hdp", ".jxr", ".wdp"), _JXR),
    **dict.fromkeys((".djv", ".djvu"), _DJVU),
    **dict.fromkeys((".dcm", ".dicom"), _DICOM),
    ".bpg": _BPG, ".exr": _EXR, ".fits": _FITS, ".flif": _FLIF, ".psb": _PSB,
}  # fmt: skip

# Of files that stand beside pictures and are none: what they hold need not be looked at.
_SILENT = _words(
    """.aae .arrow .bin .caption .cfg .ckpt .cls .conf .css .csv .db .doc .docx .gz .h5 .hdf5 .htm .html .ini .ipynb
    .js .json .jsonl .lnk .lock .log .md .npy .npz .parquet .pickle .pkl .pt .pth .py .rtf .safetensors .sh .sidecar
    .tags .tar .toml .tsv .txt .url .xml .xmp .yaml .yml .zip"""
)

_BRANDS_OF_HEIF = {b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevm", b"hevs", b"hevx", b"mif1", b"mif2", b"msf1"}
_BRANDS_OF_VIDEO = {
    *(b"3g2a", b"3gp4", b"3gp5", b"3gp6", b"M4V ", b"MSNV", b"XAVC", b"avc1", b"dash", b"f4v ", b"iso2", b"iso4"),
    *(b"iso5", b"iso6", b"isom", b"mmp4", b"mp41", b"mp42", b"qt  "),
}
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")

# (offset, bytes, what begins so); those of pictures that are read have a name only
_SIGNATURES: tuple[tuple[int, bytes, Kind | str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (0, b"8BPS\0\1", "Photoshop"),
    (0, b"\x01\xda\x00", "SGI"),
    (0, b"\x01\xda\x01", "SGI"),
    (0, b"icns", "ICNS"),
    (8, b"CR\2\0", _RAW),
    (0, b"FUJIFILMCCD-RAW", _RAW),
    (0, b"IIRO", _RAW),
    (0, b"IIRS", _RAW),
    (0, b"MMOR", _RAW),
    (0, b"IIU\0", _RAW),
    (0, b"FOVb", _RAW),
    (0, b"\0MRM", _RAW),
    (6, b"HEAPCCDR", _RAW),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"II\xbc\1", _JXR),
    (0, b"8BPS\0\2", _PSB),
    (0, b"%PDF-", _PDF),
    (0, b"%!PS", _PROGRAM),
    (0, b"\xc5\xd0\xd3\xc6", _PROGRAM),
    (0, b"v/1\1", _EXR),
    (0, b"#?RADIANCE", _HDR),
    (0, b"#?RGBE", _HDR),
    (0, b"gimp xcf", _LAYERS),
    (0, b"BPG\xfb", _BPG),
    (0, b"FLIF", _FLIF),
    (0, b"AT&TFORM", _DJVU),
    (128, b"DICM", _DICOM),
    (0, b"\xd7\xcd\xc6\x9a", _METAFILE),
    (40, b" EMF", _METAFILE),
    (0, b"\x1aE\xdf\xa3", _VIDEO),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _VIDEO),
    (0, b"\0\0\1\xba", _VIDEO),
    (0, b"\0\0\1\xb3", _VIDEO),
    (0, b"FLV\1", _VIDEO),
    (0, b"OggS", _VIDEO),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x89HDF\r\n\x1a\n", _SCIENCE),
    (0, b"GRIB", _SCIENCE),
    (0, b"BUFR", _SCIENCE),
)


@cache
def _of_pillow(formats: int) -> frozenset[str]:
    Image.init()
    found = {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NO_PHOTOS and name not in PLUGINS
    }
    return (frozenset(found) | _MORE_JPEG) - _AMBIGUOUS


def suffixes() -> frozenset[str]:
    """Suffixes of pictures that are read here, in lower case and with the dot."""
    Image.init()
    plugged = (plugin.suffixes for name, plugin in PLUGINS.items() if not lacking(name))
    return _of_pillow(len(Image.OPEN)).union(*plugged)


def begins(head: bytes) -> str | Kind:
    """What a file's first bytes say it is: the name of a format that is read, a kind that is not, or nothing ("").

    Args:
        head: `HEAD` bytes, or all that there are.
    """
    if head.startswith(_JXL):
        return "JXL"
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if head.startswith(b"RIFF"):
        return "WebP" if head[8:12] == b"WEBP" else _VIDEO if head[8:12] == b"AVI " else ""
    for at, start, what in _SIGNATURES:
        if head.startswith(start, at):
            return what
    if re.match(rb"P[1-6f]\s", head):
        return "PPM"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text):
        return _SVG
    return ""


def _of_brands(head: bytes) -> str | Kind:
    """By the brands of an ISO base media file (ISO/IEC 14496-12): the major one, or else the others."""
    length = min(max(int.from_bytes(head[:4]), 16), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, length - 3, 4))]
    if brands[0] == b"crx ":
        return _RAW
    if any(one in (b"avif", b"avis") for one in brands):
        return "AVIF"
    if any(one in _BRANDS_OF_HEIF for one in brands):
        return "HEIF"
    return _VIDEO if any(one in _BRANDS_OF_VIDEO for one in brands) else ""


def unreadable(head: bytes, name: str) -> str:
    """Why a file is no picture that can be read, as far as its first bytes and its suffix tell; else nothing.

    What follows the file's name in a sentence, without its full stop.
    """
    what = begins(head)
    suffix = PurePath(name).suffix.lower()
    if isinstance(what, Kind):
        return what.said
    if what in PLUGINS:
        missing = lacking(what)
        return missing and f"is {PLUGINS[what].title}, which needs the package {PLUGINS[what].package}; {missing}"
    named = _NAMED.get(suffix)
    # a raw file is a TIFF with a preview; any other picture may have a suffix that is not its own
    return named.said if named and (not what or (what == "TIFF" and named is _RAW)) else ""


# Listings


@dataclass(frozen=True)
class Look:
    """What a file's name says of it as one of a folder.

    Attributes:
        picture: it is one; None where its first bytes must tell.
        why: it is left out and worth a word, in a few words; else nothing.
    """

    picture: bool | None
    why: str = ""


class Listing:
    """Tells pictures from other files of a folder or archive by their names, and from their first bytes if it must."""

    def __init__(self) -> None:
        self._read = suffixes()
        self._looks: dict[str, Look] = {}

    def of_name(self, path: PurePath) -> Look:
        """By its suffix."""
        suffix = path.suffix.lower()
        if suffix not in self._looks:
            self._looks[suffix] = self._of_suffix(suffix)
        return self._looks[suffix]

    def _of_suffix(self, suffix: str) -> Look:
        if suffix in self._read:
            return Look(True)
        for name, plugin in PLUGINS.items():
            if suffix in plugin.suffixes:
                return Look(False, lacking(name))
        if suffix in _NAMED:
            return Look(False, _NAMED[suffix].title)
        return Look(False if suffix in _SILENT else None)

    def of_head(self, path: PurePath, head: bytes) -> Look:
        """Where the name does not tell: a file without a suffix is a picture if it begins like one."""
        what = begins(head)
        if isinstance(what, Kind):
            return Look(False, "" if what is _SCIENCE else what.title)
        if what in PLUGINS and (missing := lacking(what)):
            return Look(False, missing)
        if not what:
            return Look(False)
        if path.suffix or what == "FITS":
            return Look(False, f"{PLUGINS[what].title if what in PLUGINS else what} by the content, not by the name")
        return Look(True)
