"""FileStruct's introduction, as it was written, on fsworker.

::

    python examples/filestruct_intro.py DATABASE PICTURE

``DATABASE`` is a directory with a ``FileStruct.json``; what the example stores is printed.
"""

import sys

import fsworker.filestruct as FileStruct  # noqa: N812 - as code written against it says


def main(database: str, picture: str) -> None:
    client = FileStruct.Client(database)
    with open(picture, "rb") as stream:
        mydata = stream.read()

    # fmt: off
    with client.TempDir() as TempDir:  # noqa: N806
        open(TempDir.FilePath('upload.jpg'), 'wb').write(mydata)  # noqa: SIM115
        TempDir.ResizeImage('upload.jpg', 'resize.jpg', '100x100')
        hash1 = TempDir.Save('upload.jpg')
        hash2 = TempDir.Save('resize.jpg')
    # fmt: on

    print(hash1, client[hash1].InternalURI)
    print(hash2, client[hash2].InternalURI)


if __name__ == "__main__":
    main(*sys.argv[1:])
